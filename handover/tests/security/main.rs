//! What a hostile or broken process can do to a service, and what it cannot.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod children;
#[cfg(target_arch = "x86_64")]
mod confined;
mod floods;
mod logs;
mod paths;
mod strangers;
mod whole;
