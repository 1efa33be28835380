//! The sockets that systemd opens.

use super::Findings;
use crate::doctor::finding::Severity::Warning;
use crate::doctor::unit::Unit;

pub(super) fn check(unit: &Unit, findings: &mut Findings) {
    if let Some(accept) = unit.flag("Accept").filter(|it| it.value) {
        let why = "systemd starts a process for each connection, which there is no upgrading";
        findings.error("Accept", accept.at, why).write(&["Accept=no"]);
    }
    if unit.text("FileDescriptorName").is_none() {
        let why = "the program finds a socket by its name, and binds the address itself if there is none \
            of that name, which then is taken";
        let name = unit.stem().rsplit('-').next().unwrap_or_default();
        let line = format!("FileDescriptorName={name}");
        let instead = format!("which is {}", unit.name);
        findings.missing(Warning, "FileDescriptorName", &instead, why).write(&[&line]);
    }
}
