//! The commands that write and judge the units of systemd.

#![cfg(target_os = "linux")]

mod boxed;
mod command;
mod judged;
mod usage;
mod written;
