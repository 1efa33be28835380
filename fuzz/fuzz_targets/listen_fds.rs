//! Feeds what reads the variables of systemd.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(private handover::fuzz::listen_fds);
