//! Feeds what reads names in the fd store.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(private handover::fuzz::stored_names);
