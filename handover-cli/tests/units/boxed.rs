//! Units under a real systemd.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use handover_testkit::{Load, Ran, Systemd, SystemdVersion, example, skipped, soon};
use serde_json::Value;

use crate::command::handover;

macro_rules! on_every_systemd {
    ($($name:ident),* $(,)?) => {
        mod v254 { $(#[test] fn $name() { super::on(super::SystemdVersion::V254, super::$name); })* }
        mod v257 { $(#[test] fn $name() { super::on(super::SystemdVersion::V257, super::$name); })* }
        mod v262 { $(#[test] fn $name() { super::on(super::SystemdVersion::V262, super::$name); })* }
    };
}

on_every_systemd! {
    systemd_has_no_complaint_about_what_is_written,
    arguments_and_variables_arrive_as_they_were_given,
    a_written_unit_with_a_socket_reloads_and_stops,
    a_written_unit_reloads_by_a_signal,
    doctor_knows_a_unit_by_its_name,
    what_doctor_says_of_notify_access_is_true,
    what_doctor_says_of_a_kill_in_exec_stop_is_true,
}

mod v257_only {
    #[test]
    fn little_is_exposed() {
        super::on(super::SystemdVersion::V257, super::little_is_exposed);
    }
}

const APP: &str = "/srv/app/app";
const HANDOVER: &str = "/usr/bin/handover";

/// `systemd-analyze security` says 1.4; a release of it may weigh otherwise, but not by so much.
const MAX_EXPOSURE: f64 = 2.0;

/// Runs a test in a systemd of its own, or says that it is skipped.
fn on(version: SystemdVersion, test: fn(&Systemd)) {
    match Systemd::boot(version) {
        Ok(systemd) => test(&systemd),
        Err(reason) => skipped(&reason),
    }
}

/// Has units written, and puts them where systemd reads them; returns their names.
fn put(systemd: &Systemd, arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let output = ["--output", folder.path().to_str().unwrap()];
    let command = [&["unit", "--handover", HANDOVER][..], &output, arguments].concat();
    let ended = handover(&command);
    assert_eq!(ended.code, 0, "{ended:?}");
    let paths = ended.stdout.lines().map(Path::new);
    let put = paths.map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        systemd.put_unit(&name, &std::fs::read_to_string(path).unwrap());
        name
    });
    put.collect()
}

fn install(systemd: &Systemd, program: impl AsRef<Path>) {
    systemd.install(program, APP);
    systemd.install(env!("CARGO_BIN_EXE_handover"), HANDOVER);
}

fn systemd_has_no_complaint_about_what_is_written(systemd: &Systemd) {
    install(systemd, "/bin/true");
    let many: [&[&str]; 5] = [
        &[],
        &["--reload", "signal"],
        &["--listen", "http=80", "--listen", "dns=udp:53", "--listen", "f=fifo:/run/f"],
        &["--fd-store", "8", "--watchdog", "1500ms", "--state-directory", "--allow-low-ports"],
        &["--user", "daemon", "--env", "A=b \"$c\" 5%", "--description", "The 100% web"],
    ];
    for arguments in many {
        let arguments = [arguments, &[APP, "--", "a b", "100%", "$HOME", ";", "it's", ""]].concat();
        let units = put(systemd, &arguments);
        let paths: Vec<_> =
            units.iter().map(|unit| format!("/etc/systemd/system/{unit}")).collect();
        let verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"];
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let ran = systemd.run(&[&verify[..], &paths].concat());
        assert!(ran.success(), "{arguments:?}: {ran:?}");
        assert_eq!(format!("{}{}", ran.stdout, ran.stderr), "", "{arguments:?}");
    }
}

fn arguments_and_variables_arrive_as_they_were_given(systemd: &Systemd) {
    let words = [
        "a b",
        "100%",
        "%n",
        "$HOME",
        "${HOME}",
        "$$",
        ";",
        "a;b",
        "it's",
        "\"q\"",
        "",
        "#x",
        r"a\b",
        r"end\",
        "tab\there",
        "line\nbreak",
        "größe",
        "-v",
        "\\;",
        "a'b\"c",
    ];
    let value = r#"a "b" $HOME \n 5% ; it's"#;
    let folder = systemd.folder();
    let path = folder.path().to_str().unwrap();
    let script = format!(
        "#!/bin/sh\nprintf '%s\\0' \"$@\" >{path}/words\nprintf %s \"$VALUE\" >{path}/seen\n"
    );
    systemd.install(folder.write_executable("script", script), APP);
    let variable = format!("VALUE={value}");
    let arguments = [&["--name", "words", "--env", &variable, APP, "--"], &words[..]].concat();
    put(systemd, &arguments);
    // A script says nothing to systemd, and has to write what it has seen.
    let lines = format!("Type=oneshot\nRestart=no\nDynamicUser=no\nReadWritePaths={path}\n");
    systemd.put_unit("words.service.d/script.conf", &format!("[Service]\n{lines}"));
    systemd.start_unit("words.service");
    let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
    assert_eq!(systemd.folder().read("words").as_deref(), Some(&*expected));
    assert_eq!(systemd.folder().read("seen").as_deref(), Some(value));
}

fn a_written_unit_with_a_socket_reloads_and_stops(systemd: &Systemd) {
    install(systemd, example("http"));
    let address = free_address();
    let listen = format!("http={address}");
    let control = "/run/app/control";
    let arguments =
        ["--listen", &listen, "--control", control, APP, "--", &address, "--control", control];
    let units = put(systemd, &arguments);
    assert_eq!(units, ["app.service", "app-http.socket"]);
    // The service brings its socket along.
    systemd.start_unit("app.service");
    assert_eq!(systemd.show("app-http.socket", "ActiveState"), "active");
    let first = systemd.main_pid("app.service").unwrap();
    let load = Load::http(address.parse::<SocketAddr>().unwrap()).start();
    load.wait_answers(1, soon()).unwrap();

    let reloaded = systemd.systemctl(&["reload", "app.service"]);
    assert!(reloaded.success(), "{reloaded:?}\n{}", systemd.report("app.service"));
    let second = systemd.main_pid("app.service").unwrap();
    assert_ne!(first, second);
    load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    load.stop().assert_nothing_lost();

    // Of a user that exists only while it runs, only root gets at the directory.
    assert_eq!(systemd.run(&["stat", "--format=%a", "/run/private"]).stdout, "700\n");
    assert_eq!(systemd.run(&["readlink", "/run/app"]).stdout, "private/app\n");

    // An operator's command reaches it as well, and an upgrade that fails is a reload that fails.
    let status = systemd.run(&[HANDOVER, "status", "--socket", control]);
    assert!(status.success(), "{status:?}");
    systemd.install("/bin/false", APP);
    assert!(!systemd.systemctl(&["reload", "app.service"]).success());
    systemd.wait_journal("app.service", |line| line.contains("the old process serves on"), soon());
    assert_eq!(systemd.main_pid("app.service"), Some(second));
    assert!(answers(&address).starts_with("HTTP/1.1 200"));

    assert!(systemd.systemctl(&["stop", "app.service", "app-http.socket"]).success());
    assert_eq!(systemd.show("app.service", "Result"), "success");
    assert_eq!(systemd.show("app.service", "ActiveState"), "inactive");
}

fn a_written_unit_reloads_by_a_signal(systemd: &Systemd) {
    install(systemd, example("http"));
    let address = free_address();
    put(systemd, &["--reload", "signal", APP, "--", &address]);
    systemd.start_unit("app.service");
    let first = systemd.main_pid("app.service");
    let reloaded = systemd.systemctl(&["reload", "app.service"]);
    assert!(reloaded.success(), "{}", systemd.report("app.service"));
    assert_ne!(systemd.main_pid("app.service"), first);
    assert!(answers(&address).starts_with("HTTP/1.1 200"));
    assert!(systemd.systemctl(&["stop", "app.service"]).success());
    assert_eq!(systemd.show("app.service", "Result"), "success");
}

fn little_is_exposed(systemd: &Systemd) {
    install(systemd, "/bin/true");
    for arguments in [&[][..], &["--user", "daemon"], &["--allow-low-ports", "--state-directory"]] {
        put(systemd, &[arguments, &[APP]].concat());
        let analyze = ["systemd-analyze", "security", "--offline=true", "--json=off", "--no-pager"];
        let ran = systemd.run(&[&analyze[..], &["/etc/systemd/system/app.service"]].concat());
        let line = ran.stdout.lines().find(|line| line.contains("Overall exposure")).unwrap();
        let after = line.split(": ").nth(1).unwrap();
        let exposure: f64 = after.split(' ').next().unwrap().parse().unwrap();
        println!("{arguments:?}: {exposure}");
        assert!(exposure < MAX_EXPOSURE, "{arguments:?}: {}", ran.stdout);
    }
}

fn doctor(systemd: &Systemd, arguments: &[&str]) -> Ran {
    systemd.run(&[&[HANDOVER, "doctor"], arguments].concat())
}

fn doctor_knows_a_unit_by_its_name(systemd: &Systemd) {
    install(systemd, "/bin/true");
    put(systemd, &["--listen", "http=80", APP]);
    let ran = doctor(systemd, &["app"]);
    assert!(ran.success(), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().collect();
    // The socket is found by its name in the service.
    assert_eq!(lines.len(), 2, "{ran:?}");
    let release = format!("for systemd {}", release(systemd));
    assert!(lines.iter().all(|line| line.contains("nothing found") && line.ends_with(&release)));

    systemd.put_unit("app.service.d/10-b.conf", "[Service]\nKillMode=mixed\n");
    systemd.put_unit("app.service.d/05-a.conf", "[Service]\n\n# c\nKillMode=none\n");
    assert!(doctor(systemd, &["app.service"]).success(), "the later drop-in wins");
    systemd.put_unit("app.service.d/20-c.conf", "[Service]\nKillMode=process\n");
    let ran = doctor(systemd, &["--json", "app.service"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let judged: Value = serde_json::from_str(ran.stdout.lines().next().unwrap()).unwrap();
    let finding = &judged["findings"][0];
    assert_eq!(finding["file"], "/etc/systemd/system/app.service.d/20-c.conf");
    assert_eq!((&finding["line"], &finding["setting"]), (&2.into(), &"KillMode=process".into()));

    // The defaults are those of this machine: 20 s and 10 s.
    systemd
        .put_unit("bare.service", "[Service]\nType=notify\nRestart=always\nExecStart=/bin/true\n");
    let ran = doctor(systemd, &["bare.service"]);
    assert!(ran.stdout.contains("no TimeoutStopSec= (which is 10s)"), "{ran:?}");
    assert!(ran.stdout.contains("no TimeoutStartSec= (which is 20s)"), "{ran:?}");

    let ran = doctor(systemd, &["nowhere"]);
    assert_eq!(ran.status.code(), Some(6), "{ran:?}");
    assert!(ran.stderr.contains("nowhere"), "{ran:?}");
}

fn what_doctor_says_of_notify_access_is_true(systemd: &Systemd) {
    let text = "[Service]\nType=notify\nNotifyAccess=none\nExecStart=/bin/true\n";
    systemd.put_unit("none.service", text);
    assert_eq!(systemd.show("none.service", "NotifyAccess"), "main");
}

fn what_doctor_says_of_a_kill_in_exec_stop_is_true(systemd: &Systemd) {
    install(systemd, example("subject_systemd"));
    let address = free_address();
    let drain = Duration::from_secs(60);
    let control = "control:/run/killed/control";
    let start = format!("{APP} tcp:http={address} {control} drain:{}", drain.as_millis());
    let unit = |lines: &str| {
        let text = format!(
            "[Service]\nType=notify\nExecStart={start}\nRuntimeDirectory=killed\n{lines}\n"
        );
        systemd.put_unit("killed.service", &text);
        systemd.start_unit("killed.service");
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "it is answered, and held");
        stream
    };

    let held = unit("");
    let stop = systemd.start(&["systemctl", "stop", "killed.service"]);
    systemd.wait_show("killed.service", "SubState", |state| state == "stop-sigterm", soon());
    drop(held);
    assert!(stop.finish(soon()).unwrap().status.success());

    // The answer is that the first signal has been taken: two that wait are one.
    let answer = format!("{HANDOVER} status --socket /run/killed/control");
    let mut held = unit(&format!("ExecStop=/bin/kill -TERM $MAINPID\nExecStop={answer}"));
    let begun = Instant::now();
    assert!(systemd.systemctl(&["stop", "killed.service"]).success());
    assert!(begun.elapsed() < drain, "it has not drained");
    // An end, or a reset.
    assert!(matches!(held.read(&mut [0; 4096]), Ok(0) | Err(_)));
    assert!(doctor(systemd, &["killed"]).stdout.contains("error: ExecStop=/bin/kill"));
}

fn release(systemd: &Systemd) -> String {
    let told = systemd.systemctl(&["--version"]).stdout;
    let word = told.split_ascii_whitespace().nth(1).unwrap();
    word.chars().take_while(char::is_ascii_digit).collect()
}

/// What it answers, up to its end.
fn answers(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// An address on which nobody listens, below those that the kernel gives to others.
fn free_address() -> String {
    // Each test is a process of its own: the number of it spreads them.
    let (first, count) = (10_000, 9_000);
    let start = std::process::id() % count;
    let mut ports = (0..count).map(|n| first + (start + n) % count);
    let is_free =
        |port: &u32| TcpListener::bind(("127.0.0.1", u16::try_from(*port).unwrap())).is_ok();
    format!("127.0.0.1:{}", ports.find(is_free).expect("a free port"))
}
