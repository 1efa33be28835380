//! What `handover doctor` says of units that were written well or badly.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::command::{Ended, handover, handover_in, unit};

const APP: &str = "/srv/app/app";

/// A unit in a directory of its own.
struct Written {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Written {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.service");
        fs::write(&path, text).unwrap();
        Self { folder, path }
    }

    /// A good unit, and these lines in a drop-in.
    fn with(lines: &str) -> Self {
        let written = Self::new(&unit(&[APP]));
        written.drop_in("50-more.conf", lines);
        written
    }

    /// A good unit without a setting.
    fn without(setting: &str) -> Self {
        let text = unit(&[APP]);
        let prefix = format!("{setting}=");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with(&prefix)).collect();
        assert!(lines.len() < text.lines().count(), "{setting}");
        Self::new(&lines.join("\n"))
    }

    fn drop_in(&self, name: &str, lines: &str) {
        let directory = self.folder.path().join("app.service.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), format!("[Service]\n{lines}\n")).unwrap();
    }

    fn doctor(&self, options: &[&str]) -> Ended {
        let path = self.path.to_str().unwrap();
        // Unless the test has another one: the last counts for nothing, so it is given once.
        let release: &[&str] =
            if options.contains(&"--systemd") { &[] } else { &["--systemd", "257"] };
        handover(&[&["doctor"], release, options, &[path]].concat())
    }

    fn findings(&self, options: &[&str]) -> Vec<Value> {
        let ended = self.doctor(&[&["--json"], options].concat());
        let judged: Value = serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
        let findings = judged["findings"].as_array().unwrap().clone();
        let errors = findings.iter().any(|finding| finding["severity"] == "error");
        assert_eq!(ended.code, i32::from(errors), "{ended:?}");
        findings
    }

    /// The one finding there is: how bad it is, what about, and the lines to write.
    #[track_caller]
    fn only(&self, options: &[&str]) -> (String, String, Vec<String>) {
        let findings = self.findings(options);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let write = findings[0]["write"].as_array().unwrap().iter().map(text).collect();
        (text(&findings[0]["severity"]), text(&findings[0]["about"]), write)
    }
}

#[test]
fn nothing_is_found_in_what_unit_writes() {
    let common: &[&[&str]] = &[
        &[],
        &["--user", "app", "--allow-low-ports", "--state-directory"],
        &["--env", "A=b c", "--name", "web", "--description", "x"],
        &["--listen", "http=80", "--listen", "dns=udp:53", "--listen", "http=[::1]:81"],
        &["--control", "/run/x/y/control"],
        &["--control", "/srv/x/control", "--user", "app"],
        &["--control", "/var/lib/app/control", "--state-directory"],
    ];
    let told: &[&[&str]] = &[
        &[],
        &["--drain-timeout", "2m", "--ready-timeout", "5m"],
        &["--watchdog", "30s"],
        &["--fd-store", "8"],
    ];
    for reload in ["upgrade", "signal"] {
        for binary in [APP, "/home/me/app"] {
            for (written, asked) in
                common.iter().flat_map(|one| told.iter().map(move |two| (one, two)))
            {
                let folder = tempfile::tempdir().unwrap();
                let output = folder.path().to_str().unwrap();
                let fixed = ["unit", "--handover", "/usr/bin/handover", "--reload", reload];
                let fixed = [&fixed[..], &["--output", output]].concat();
                let arguments = [&fixed, *written, *asked, &[binary, "--", "a b", ";"]].concat();
                let ended = handover(&arguments);
                assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");

                let units: Vec<_> = ended.stdout.lines().collect();
                let asked: Vec<_> = match **asked {
                    ["--watchdog", _] => vec!["--watchdog"],
                    ["--fd-store", _] => vec!["--fd-store=8"],
                    ref times => times.to_vec(),
                };
                let doctor = ["doctor", "--systemd", "257"];
                let judged = handover(&[&doctor[..], &asked, &units].concat());
                assert_eq!(judged.code, 0, "{arguments:?}: {}", judged.stdout);
                let lines: Vec<_> = judged.stdout.lines().collect();
                assert_eq!(lines.len(), units.len(), "{arguments:?}: {}", judged.stdout);
                assert!(lines.iter().all(|line| line.contains("nothing found")), "{lines:?}");
            }
        }
    }
}

#[test]
fn each_setting_that_bites_is_found_and_put_right() {
    for (line, severity, about) in [
        ("Type=simple", "error", "Type"),
        ("Type=exec", "error", "Type"),
        ("Type=forking", "error", "Type"),
        ("Type=oneshot", "error", "Type"),
        ("Type=dbus", "error", "Type"),
        ("Type=notify-reload", "error", "ExecReload"),
        ("NotifyAccess=all", "error", "NotifyAccess"),
        ("NotifyAccess=exec", "warning", "NotifyAccess"),
        ("NotifyAccess=none", "warning", "NotifyAccess"),
        ("PIDFile=/run/app.pid", "warning", "PIDFile"),
        ("ExitType=cgroup", "error", "ExitType"),
        ("RemainAfterExit=yes", "error", "RemainAfterExit"),
        ("PrivatePIDs=yes", "error", "PrivatePIDs"),
        ("RuntimeMaxSec=1d", "warning", "RuntimeMaxSec"),
        ("Restart=on-failure", "warning", "Restart"),
        ("Restart=no", "warning", "Restart"),
        ("OOMPolicy=stop", "warning", "OOMPolicy"),
        ("OOMPolicy=kill", "warning", "OOMPolicy"),
        ("KillMode=process", "error", "KillMode"),
        ("KillMode=none", "error", "KillMode"),
        ("KillSignal=SIGQUIT", "error", "KillSignal"),
        ("KillSignal=9", "error", "KillSignal"),
        ("RestartKillSignal=SIGQUIT", "error", "RestartKillSignal"),
        ("SendSIGHUP=yes", "warning", "SendSIGHUP"),
        ("ExecStop=/bin/kill -TERM $MAINPID", "error", "ExecStop"),
        ("ExecStop=-/bin/sh -c 'kill $MAINPID'", "error", "ExecStop"),
        ("TimeoutStopSec=10s", "warning", "TimeoutStopSec"),
        ("TimeoutStartSec=1min", "error", "TimeoutStartSec"),
        ("TimeoutSec=55", "error", "TimeoutStartSec"),
        ("ExecReload=\nExecReload=/bin/kill -HUP $MAINPID", "error", "ExecReload"),
        ("ExecReload=\nExecReload=/bin/sh -c 'kill -HUP $MAINPID'", "error", "ExecReload"),
        ("ExecReload=", "warning", "ExecReload"),
        (
            "ExecReload=\nExecReload=-/usr/bin/handover upgrade --socket /run/app/control",
            "error",
            "ExecReload",
        ),
        (
            "ExecReload=\nExecReload=bin/handover upgrade --socket /run/app/control",
            "error",
            "ExecReload",
        ),
        ("ExecReload=\nExecReload=/usr/bin/handover upgrade", "error", "ExecReload"),
        ("ExecStart=\nExecStart=bin/app", "error", "ExecStart"),
        ("ExecStart=\nExecStart=/bin/sh -c '/srv/app/app -v'", "error", "ExecStart"),
        ("PrivateTmp=no\nDynamicUser=no\nExecStart=\nExecStart=/tmp/app", "warning", "ExecStart"),
        ("ExecStart=\nExecStart=/tmp/app", "error", "PrivateTmp"),
        ("PrivateTmp=no\nExecStart=\nExecStart=/var/tmp/app", "error", "DynamicUser"),
        ("ExecStart=\nExecStart=\"/home/me/my app\" -v", "error", "ProtectHome"),
        (
            "ExecReload=\nExecReload=/root/handover upgrade --socket /run/app/control",
            "error",
            "ProtectHome",
        ),
        ("RuntimeDirectory=", "error", "RuntimeDirectory"),
        ("RuntimeDirectoryPreserve=no", "warning", "RuntimeDirectoryPreserve"),
        ("SystemCallFilter=\nSystemCallFilter=@basic-io", "error", "SystemCallFilter"),
        ("SystemCallFilter=~@process", "error", "SystemCallFilter"),
        ("RestrictAddressFamilies=~AF_UNIX", "error", "RestrictAddressFamilies"),
        ("FileDescriptorStoreMax=4", "warning", "FileDescriptorStorePreserve"),
        (
            "FileDescriptorStoreMax=4\nFileDescriptorStorePreserve=no",
            "error",
            "FileDescriptorStorePreserve",
        ),
    ] {
        let written = Written::with(line);
        let findings = written.findings(&[]);
        let [finding] = &*findings else { panic!("{line}: {findings:#?}") };
        assert_eq!(
            (&finding["severity"], &finding["about"]),
            (&severity.into(), &about.into()),
            "{line}"
        );
        let write = finding["write"].as_array().unwrap();
        assert!(!write.is_empty(), "{line}");

        let lines: Vec<_> = write.iter().map(|line| line.as_str().unwrap()).collect();
        written.drop_in("60-right.conf", &lines.join("\n"));
        let left = written.findings(&[]);
        assert!(left.is_empty(), "{line}, put right by {lines:?}: {left:#?}");
    }
}

#[test]
fn what_is_harmless_is_not_found() {
    for lines in [
        "KillMode=mixed",
        "KillSignal=SIGINT",
        "KillSignal=TERM\nReloadSignal=SIGUSR1",
        "TimeoutStopSec=infinity\nTimeoutStartSec=0",
        "NotifyAccess=main\nRemainAfterExit=off",
        "FileDescriptorStoreMax=4\nFileDescriptorStorePreserve=yes",
        "SystemCallFilter=~@mount @swap:EPERM",
        "BindReadOnlyPaths=/home/me/app\nExecStart=\nExecStart=/home/me/app/app",
        "ProtectHome=tmpfs\nProtectHome=read-only\nExecStart=\nExecStart=/home/me/app",
        "ExecReload=+/usr/bin/true ; /usr/bin/true",
        "NotifyAccess=all\nNotifyAccess=",
        "ExecStart=\nExecStart=app -v",
        "ExecStart=\nExecStart=/bin/sh -c 'A=1 exec /srv/app/app'",
        "ExecStop=/usr/bin/handover stop --socket /run/app/control",
    ] {
        let findings = Written::with(lines).findings(&[]);
        assert!(findings.is_empty(), "{lines}: {findings:#?}");
    }
}

#[test]
fn what_is_not_there_is_found() {
    for (setting, options, severity) in [
        ("Type", &[][..], "error"),
        ("Restart", &[], "warning"),
        ("ExecReload", &[], "warning"),
        ("TimeoutStopSec", &["--drain-timeout", "90s"], "warning"),
        ("TimeoutStartSec", &["--ready-timeout", "90s"], "error"),
        ("RuntimeDirectoryPreserve", &[], "warning"),
    ] {
        let (found, about, _) = Written::without(setting).only(options);
        assert_eq!((&*found, &*about), (severity, setting));
    }
}

#[test]
fn what_is_asked_for_has_to_be_there() {
    let good = Written::new(&unit(&[APP]));
    let (severity, about, _) = good.only(&["--watchdog"]);
    assert_eq!((&*severity, &*about), ("warning", "WatchdogSec"));
    let abouts = |written: &Written, options: &[&str]| -> Vec<String> {
        let findings = written.findings(options);
        findings.iter().map(|finding| finding["about"].as_str().unwrap().to_owned()).collect()
    };
    let elsewhere = abouts(&good, &["--control", "/run/other/control"]);
    assert_eq!(elsewhere, ["ExecReload", "RuntimeDirectory"]);
    let hidden = abouts(&good, &["--control", "/tmp/app/control"]);
    assert_eq!(hidden, ["ExecReload", "PrivateTmp"]);

    let store = "FileDescriptorStoreMax";
    assert_eq!(abouts(&good, &["--fd-store"]), [store, "FileDescriptorStorePreserve"]);
    let some = Written::with("FileDescriptorStoreMax=4\nFileDescriptorStorePreserve=yes");
    assert!(abouts(&some, &["--fd-store"]).is_empty());
    assert_eq!(some.only(&["--fd-store=8"]).2, ["FileDescriptorStoreMax=8"]);
}

#[test]
fn an_older_systemd_lacks_what_came_later() {
    let signal = Written::new(&unit(&["--reload", "signal", APP]));
    let (severity, about, write) = signal.only(&["--systemd", "252"]);
    assert_eq!((&*severity, &*about, &*write[0]), ("error", "Type", "Type=notify"));
    assert!(signal.findings(&["--systemd", "253"]).is_empty());

    let store = Written::new(&unit(&["--fd-store", "8", APP]));
    let (severity, about, _) = store.only(&["--systemd", "253", "--fd-store=8"]);
    assert_eq!((&*severity, &*about), ("error", "FileDescriptorStoreMax"));
}

#[test]
fn a_reload_by_signal_is_by_the_one_that_upgrades() {
    let signal = Written::new(&unit(&["--reload", "signal", APP]));
    signal.drop_in("x.conf", "ReloadSignal=SIGUSR2");
    let (severity, about, write) = signal.only(&[]);
    assert_eq!((&*severity, &*about, &*write[0]), ("error", "ReloadSignal", "ReloadSignal=SIGHUP"));
}

#[test]
fn the_sockets_of_a_service_are_looked_at_with_it() {
    let text = unit(&[APP]) + "[Service]\nSockets=app-http.socket\n";
    let written = Written::new(&text);
    let socket = "[Socket]\nListenStream=80\nAccept=yes\n";
    fs::write(written.folder.path().join("app-http.socket"), socket).unwrap();
    let ended = written.doctor(&[]);
    assert_eq!(ended.code, 1);
    for said in [
        "app.service: nothing found, for systemd 257",
        "error: Accept=yes",
        "app-http.socket:3",
        "write  Accept=no",
        "warning: no FileDescriptorName= (which is app-http.socket)",
        "write  FileDescriptorName=http",
        "app-http.socket: 1 error, 1 warning, for systemd 257",
    ] {
        assert!(ended.stdout.contains(said), "{said}: {}", ended.stdout);
    }
}

#[test]
fn all_that_is_to_be_written_is_said_at_once() {
    let text = "[Service]\nType=notify\nExecStart=/srv/app/app\nDynamicUser=yes\nRestart=always\nOOMPolicy=continue\n\
        ExecReload=/bin/kill -HUP $MAINPID\nTimeoutStartSec=2min\n";
    let written = Written::new(text);
    let (_, _, write) = written.only(&[]);
    assert_eq!(write[2..], ["RuntimeDirectory=app", "RuntimeDirectoryPreserve=restart"]);
    written.drop_in("x.conf", &write.join("\n"));
    assert!(written.findings(&[]).is_empty());
}

#[test]
fn a_file_is_judged_where_there_is_no_systemd() {
    let written = Written::with("KillMode=none");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_handover"));
    let output = command.env("PATH", "").args(["doctor"]).arg(&written.path).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("app.service: 1 error\n"), "{said}");
    let output = command.arg("app").output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot run systemctl") && said.contains("give a path"), "{said}");
}

/// A checkout in a home directory has its command there: a unit that cannot see it must not be told
/// to call it.
#[test]
fn a_command_that_the_service_does_not_see_is_not_proposed() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let command = folder.path().join("handover");
    fs::hard_link(env!("CARGO_BIN_EXE_handover"), &command)
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_handover"), &command).map(drop))
        .unwrap();
    let written = Written::without("ExecReload");
    let mut doctor = std::process::Command::new(&command);
    let output = doctor.args(["doctor", "--systemd", "257"]).arg(&written.path).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("ExecReload=/usr/local/bin/handover upgrade"), "{said}");
}

#[test]
fn a_script_is_left_to_its_author() {
    let written = Written::with("ExecStart=\nExecStart=/bin/sh -c 'cd /srv; ./app'");
    let (severity, about, write) = written.only(&[]);
    assert_eq!((&*severity, &*about, &*write), ("error", "ExecStart", &[][..]));
}

#[test]
fn a_socket_keeps_its_name_and_its_queue() {
    let written = Written::new(&unit(&[APP]));
    let path = written.folder.path().join("app.socket");
    let abouts = |lines: &str| -> Vec<String> {
        fs::write(&path, format!("[Socket]\nListenStream=80\n{lines}\n")).unwrap();
        let ended = handover(&["doctor", "--systemd", "257", "--json", path.to_str().unwrap()]);
        let judged: Value = serde_json::from_str(&ended.stdout).unwrap();
        let findings = judged["findings"].as_array().unwrap();
        findings.iter().map(|finding| finding["about"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(abouts("FileDescriptorName=http\nFlushPending=no"), [""; 0]);
    assert_eq!(abouts("FileDescriptorName=http\nFlushPending=yes"), ["FlushPending"]);
    let two = "FileDescriptorName=http\nListenStream=81\nFileDescriptorName=admin";
    assert_eq!(abouts(two), ["FileDescriptorName"]);
    assert_eq!(abouts(&format!("{two}\nFileDescriptorName=\nFileDescriptorName=http")), [""; 0]);
}

#[test]
fn a_finding_names_the_file_and_the_line() {
    let written = Written::with("# kept\nKillMode=\\\n  none");
    let finding = &written.findings(&[])[0];
    assert_eq!(finding["line"], 3);
    assert!(finding["file"].as_str().unwrap().ends_with("app.service.d/50-more.conf"));
    assert_eq!(finding["setting"], "KillMode=none");
    let ended = written.doctor(&[]);
    assert!(ended.stdout.contains("app.service.d/50-more.conf:3\n"), "{}", ended.stdout);

    let finding = &Written::without("Type").findings(&[])[0];
    assert!(finding["file"].is_null() && finding["line"].is_null(), "{finding}");
}

#[test]
fn lines_that_systemd_ignores_are_found() {
    let written = Written::with("KillMode=proces\nTimeoutStopSec=soon\nnothing\n\u{1b}[31m=1");
    let findings = written.findings(&[]);
    let abouts: Vec<_> =
        findings.iter().map(|finding| finding["about"].as_str().unwrap()).collect();
    assert_eq!(abouts, ["syntax", "TimeoutStopSec", "KillMode"]);
    assert!(!written.doctor(&[]).stdout.contains('\u{1b}'));
}

#[test]
fn a_unit_that_cannot_be_read_has_an_exit_code_of_its_own() {
    let written = Written::with("KillMode=none");
    let folder = written.folder.path();
    let huge = folder.join("huge.service");
    fs::write(&huge, "#".repeat(2 << 20)).unwrap();
    let timer = folder.join("a.timer");
    fs::write(&timer, "[Timer]\nOnBootSec=1\n").unwrap();
    let missing = folder.join("missing.service");
    for (path, complaint) in [
        (&*missing, "cannot be read"),
        (folder, "is not a file"),
        (&huge, "is too large"),
        (&timer, "neither a section"),
    ] {
        let ended = handover(&["doctor", path.to_str().unwrap()]);
        assert_eq!((ended.code, &*ended.stdout), (6, ""), "{ended:?}");
        assert!(ended.stderr.contains(complaint), "{ended:?}");
    }
    // What can be read is judged all the same.
    let ended = written.doctor(&["--json", missing.to_str().unwrap()]);
    assert_eq!(ended.code, 6);
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["error"].as_str().unwrap().contains("cannot be read"), "{lines:?}");
    assert_eq!(lines[1]["findings"][0]["about"], "KillMode");
    let ended = handover_in(folder, &["doctor", "app.service"]);
    assert_eq!(ended.code, 6);
    assert!(ended.stderr.contains("for the file write ./app.service"), "{ended:?}");
    assert_eq!(handover(&["doctor", "*.service"]).code, 6);
    assert_eq!(handover(&["doctor"]).code, 2);
}

#[test]
fn garbage_is_judged_without_a_panic() {
    let good = unit(&["--fd-store", "8", "--watchdog", "30s", APP]).into_bytes();
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        // The constants of Knuth's MMIX.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..300)
        .map(|nth| {
            let mut bytes = good.clone();
            for _ in 0..1 + random(40) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"=\\\"'%$;~-\n[]\xff\0"[random(14)]),
                }
            }
            let path = folder.path().join(format!("{nth}.service"));
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        })
        .collect();
    let ended = handover(&[vec!["doctor".to_owned(), "--json".to_owned()], paths].concat());
    assert!([0, 1, 6].contains(&ended.code), "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 300, "{}", ended.stderr);
}
