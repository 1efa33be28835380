//! The text of the `.service` unit.

use std::time::Duration;

use super::plan::{Place, Plan};
use super::text::{Text, span};
use super::{Reload, quote};

/// How much longer systemd waits than the program does: the program is to say what went wrong.
const START_MARGIN: Duration = Duration::from_secs(30);
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Writes the unit.
pub(super) fn text(plan: &Plan<'_>) -> String {
    let mut text = Text::default();
    unit(&mut text, plan);
    text.section("Service");
    process(&mut text, plan);
    times(&mut text, plan);
    kept(&mut text, plan);
    text.gap();
    identity(&mut text, plan);
    directories(&mut text, plan);
    text.gap();
    sandbox(&mut text, plan);
    kernel(&mut text);
    install(&mut text, plan);
    text.finish()
}

fn unit(text: &mut Text, plan: &Plan<'_>) {
    let description = plan.args.description.as_deref().unwrap_or(&plan.name);
    text.section("Unit").set("Description", description.replace('%', "%%"));
    // An address of its own need not be there before the network is.
    text.set("Wants", "network-online.target").set("After", "network-online.target");
    text.why("Start it again for ever, and not five times in ten seconds.");
    text.set("StartLimitIntervalSec", 0);
}

fn process(text: &mut Text, plan: &Plan<'_>) {
    match plan.args.reload {
        Reload::Upgrade => {
            text.why("The program says when it serves, and after an upgrade, which process does.");
            text.set("Type", "notify");
        }
        Reload::Signal => {
            text.why("A reload sends SIGHUP, and waits for the new process. Needs systemd 253.");
            text.why("An upgrade that fails is known when the time for it is up.");
            text.set("Type", "notify-reload");
        }
    }
    text.set("ExecStart", &plan.start);
    if let Some(control) = &plan.control {
        let path = &control.path;
        text.why(format_args!("The program has to open it: Builder::control(\"{path}\")."));
        if let Some(reload) = &plan.reload {
            text.why("A failed upgrade is a failed reload, and the journal has the reason.");
            text.set("ExecReload", reload);
        }
    }
    for (name, value) in &plan.args.env {
        text.set("Environment", quote::variable(name, value));
    }
    if !plan.sockets.is_empty() {
        text.why("They stay open, and connections wait, while the service is down.");
        let units = plan.sockets.iter().map(|socket| &*socket.unit).collect::<Vec<_>>();
        text.set("Sockets", units.join(" "));
    }
    text.why("After any end but a stop: `on-failure` misses a crash in the instant of a takeover.");
    text.set("Restart", "always");
    text.why("At once at first, and then more and more slowly. Needs systemd 254.");
    text.set("RestartSec", "100ms").set("RestartSteps", 5).set("RestartMaxDelaySec", "10s");
    text.why("A new version for which there is no memory must not end the old one.");
    text.set("OOMPolicy", "continue");
}

fn times(text: &mut Text, plan: &Plan<'_>) {
    let (ready, drain) = (plan.args.ready_timeout, plan.args.drain_timeout);
    text.why(format_args!(
        "Longer than becoming ready may take ({}), in a reload too.",
        span(ready)
    ));
    text.set("TimeoutStartSec", span(ready.saturating_add(START_MARGIN)));
    text.why(format_args!("Longer than draining may take ({}).", span(drain)));
    text.set("TimeoutStopSec", span(drain.saturating_add(STOP_MARGIN)));
    if let Some(watchdog) = plan.args.watchdog {
        text.why("Whoever is the main process gives a sign of life, or is killed.");
        text.set("WatchdogSec", span(watchdog));
    }
}

fn kept(text: &mut Text, plan: &Plan<'_>) {
    if let Some(count) = plan.args.fd_store {
        text.why("Sockets and states that outlive a crash. Needs systemd 254.");
        text.set("FileDescriptorStoreMax", count);
        text.why("A stop gives them up; `yes` would keep them for the next start.");
        text.set("FileDescriptorStorePreserve", "restart");
    }
}

fn identity(text: &mut Text, plan: &Plan<'_>) {
    match &plan.args.user {
        Some(user) => {
            text.set("User", user).yes("RemoveIPC");
        }
        None => {
            text.why("A user that exists only while the service runs.");
            text.yes("DynamicUser");
        }
    }
    text.yes("NoNewPrivileges");
    if plan.args.allow_low_ports {
        text.why("Ports below 1024, and nothing else.");
        text.set("AmbientCapabilities", LOW_PORTS).set("CapabilityBoundingSet", LOW_PORTS);
    } else {
        text.set("CapabilityBoundingSet", "");
    }
    text.set("UMask", "0077");
}

const LOW_PORTS: &str = "CAP_NET_BIND_SERVICE";

fn directories(text: &mut Text, plan: &Plan<'_>) {
    if let Some(control) = &plan.control {
        match &control.place {
            Place::Runtime(directory) => {
                text.why("Of the control socket; stays when the service is restarted.");
                text.set("RuntimeDirectory", directory);
                text.set("RuntimeDirectoryPreserve", "restart");
            }
            Place::State => {}
            Place::Other(directory) => {
                text.why("Of the control socket; has to be there, and to be the user's.");
                text.set("ReadWritePaths", directory);
            }
        }
    }
    if plan.args.state_directory {
        text.set("StateDirectory", &plan.name);
    }
}

fn sandbox(text: &mut Text, plan: &Plan<'_>) {
    text.why("What it does not need, it cannot do.");
    text.set("ProtectSystem", "strict");
    if plan.needs_home {
        text.why("`yes` would hide what is executed from there.");
        text.set("ProtectHome", "read-only");
    } else {
        text.yes("ProtectHome");
    }
    for setting in ["PrivateTmp", "PrivateDevices", "ProtectHostname", "ProtectClock"] {
        text.yes(setting);
    }
    text.set("ProtectProc", "invisible").set("ProcSubset", "pid");
}

fn kernel(text: &mut Text) {
    for setting in [
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "RestrictNamespaces",
    ] {
        text.yes(setting);
    }
    text.set("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX");
    text.set("SystemCallArchitectures", "native");
    text.why("The second line takes users, limits and priorities out of the first.");
    text.set("SystemCallFilter", "@system-service");
    text.set("SystemCallFilter", "~@privileged @resources");
    text.why("What is not allowed fails, instead of killing the process.");
    text.set("SystemCallErrorNumber", "EPERM");
}

fn install(text: &mut Text, plan: &Plan<'_>) {
    text.section("Install").set("WantedBy", "multi-user.target");
    if !plan.sockets.is_empty() {
        let units = plan.sockets.iter().map(|socket| &*socket.unit).collect::<Vec<_>>();
        text.set("Also", units.join(" "));
    }
}
