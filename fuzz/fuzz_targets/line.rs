//! Feeds a line.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(handover_fuzz::line);
