//! What systemd keeps through a crash, and when it takes a service for dead.

use std::time::Duration;

use super::{Asked, Findings};
use crate::doctor::finding::Severity::{Error, Warning};
use crate::doctor::timespan::Span;
use crate::doctor::unit::Unit;

/// The release from which on an fd store lives through a `systemctl restart`.
const FD_STORE: u32 = 254;

/// What is proposed if nobody says how many.
const USUAL_STORE: u32 = 16;

pub(super) fn check(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    let max = unit.number("FileDescriptorStoreMax");
    let size = max.as_ref().map_or(0, |max| max.value);
    if let Some(wanted) = asked.fd_store {
        if size < wanted {
            let why = match size {
                0 => "systemd keeps nothing, so that a crash loses sockets and state".to_owned(),
                _ => format!(
                    "the service wants to store {wanted}, and systemd closes what is too much"
                ),
            };
            // Of --fd-store without a number it is known only that it is more than none.
            let enough = if wanted == 1 { USUAL_STORE } else { wanted };
            let line = format!("FileDescriptorStoreMax={enough}");
            let found = max.as_ref();
            findings
                .either(Error, "FileDescriptorStoreMax", found, "which is 0", why)
                .write(&[&line]);
        }
        if asked.is_before(FD_STORE) {
            let release = asked.systemd.unwrap_or_default();
            let setting = format!("systemd {release}");
            let why = format!("what the library stores needs systemd {FD_STORE}");
            findings.push(Error, "FileDescriptorStoreMax", setting, None, why);
        }
    }
    if asked.fd_store.is_some() || size > 0 {
        preserved(unit, asked, findings);
    }
    watched(unit, asked, findings);
}

fn preserved(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    if asked.is_before(FD_STORE) {
        return;
    }
    let preserve = unit.text("FileDescriptorStorePreserve");
    match preserve.as_ref().map(|found| found.value) {
        None => {
            let why = "a stop with a later start loses what is stored; `restart` says that this is meant, \
                `yes` keeps it";
            let line = "FileDescriptorStorePreserve=yes";
            let about = "FileDescriptorStorePreserve";
            findings.missing(Warning, about, "which is restart", why).write(&[line]);
        }
        Some(value) if crate::doctor::unit::boolean(value) == Some(false) => {
            let why = "`systemctl restart` loses what is stored";
            let at = preserve.as_ref().map(|found| found.at).expect("it has a value");
            let line = "FileDescriptorStorePreserve=restart";
            findings.error("FileDescriptorStorePreserve", at, why).write(&[line]);
        }
        Some(_) => {}
    }
}

fn watched(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    let found = unit.span(&["WatchdogSec"]);
    let off = [Span::Of(Duration::ZERO), Span::Infinite];
    if asked.watchdog && found.as_ref().is_none_or(|found| off.contains(&found.value)) {
        let why = "a process that hangs serves nobody, and is never restarted";
        findings
            .either(Warning, "WatchdogSec", found.as_ref(), "", why)
            .write(&["WatchdogSec=30s"]);
    }
}
