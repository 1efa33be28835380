//! Feeds what cuts and reads the lines of control clients.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(private handover::fuzz::requests);
