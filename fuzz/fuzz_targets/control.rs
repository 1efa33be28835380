//! Feeds the types of the control socket.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(handover_fuzz::control);
