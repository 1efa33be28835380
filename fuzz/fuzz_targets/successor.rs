//! Feeds a successor.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(handover_fuzz::successor);
