//! Services under a real systemd: several releases of it, each booted for the one test.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod attacks;
mod documented;
mod hardened;
mod probation;
mod reloads;
mod sockets;
mod stage;
mod stops;
mod store;
mod watchdog;

/// Makes a test of each function for each release of systemd.
macro_rules! on_every_systemd {
    ($($name:ident),* $(,)?) => {
        mod v254 { $(#[test] fn $name() {
            crate::stage::on(handover_testkit::SystemdVersion::V254, super::$name);
        })* }
        mod v257 { $(#[test] fn $name() {
            crate::stage::on(handover_testkit::SystemdVersion::V257, super::$name);
        })* }
        mod v262 { $(#[test] fn $name() {
            crate::stage::on(handover_testkit::SystemdVersion::V262, super::$name);
        })* }
    };
}

/// Makes a test of each function for the release that Debian 13 has.
macro_rules! on_systemd_257 {
    ($($name:ident),* $(,)?) => {
        mod v257_only { $(#[test] fn $name() {
            crate::stage::on(handover_testkit::SystemdVersion::V257, super::$name);
        })* }
    };
}

use {on_every_systemd, on_systemd_257};
