//! Feeds the decoder of connections that change hands.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(handover_fuzz::moving);
