//! Feeds the adoption of a channel.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(private handover::fuzz::channel);
