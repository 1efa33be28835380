//! The sockets that systemd opens.

use super::Findings;
use crate::doctor::finding::Severity::Warning;
use crate::doctor::unit::Unit;

pub(super) fn check(unit: &Unit, findings: &mut Findings) {
    if let Some(accept) = unit.flag("Accept").filter(|it| it.value) {
        let why = "systemd starts a process for each connection, which there is no upgrading";
        findings.error("Accept", accept.at, why).write(&["Accept=no"]);
    }
    if let Some(flush) = unit.flag("FlushPending").filter(|it| it.value) {
        let why = "clients that wait in the queue after a crash are thrown out, instead of being served by \
            the next process";
        findings.warning("FlushPending", flush.at, why).write(&["FlushPending=no"]);
    }
    let names = unit.list("FileDescriptorName");
    if let [.., before, last] = &*names
        && before.value != last.value
    {
        let why = format!(
            "all sockets of a unit have one name, which is this one: those that are to be called {} need \
            a unit of their own",
            before.value
        );
        let lines =
            ["FileDescriptorName=".to_owned(), format!("FileDescriptorName={}", last.value)];
        let lines = lines.each_ref().map(String::as_str);
        findings.error("FileDescriptorName", last, why).write(&lines);
    }
    if names.is_empty() {
        let why = "the program finds a socket by its name, and binds the address itself if there is none \
            of that name, which then is taken";
        let name = unit.stem().rsplit('-').next().unwrap_or_default();
        let line = format!("FileDescriptorName={name}");
        let instead = format!("which is {}", unit.name);
        findings.missing(Warning, "FileDescriptorName", &instead, why).write(&[&line]);
    }
}
