//! A real systemd boots, serves a test, and leaves nothing.

#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use handover_testkit::process::{self, exited, signal};
use handover_testkit::{Launch, Pid, Signal, Systemd, SystemdVersion, recheck, skipped_test, soon};

const UNIT: &str = "notes.service";

/// Tells that it is ready, and what it was told on a reload.
const NOTIFY_SERVICE: &str = "
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'echo serving; systemd-notify --ready --status=happy; exec sleep infinity'
ExecReload=/bin/sh -c 'echo reloading; read line <%FOLDER%/go'
";

#[test]
fn systemd_254_runs_a_service() {
    runs_a_service("systemd_254_runs_a_service", SystemdVersion::V254);
}

#[test]
fn systemd_257_runs_a_service() {
    runs_a_service("systemd_257_runs_a_service", SystemdVersion::V257);
}

#[test]
fn systemd_262_runs_a_service() {
    runs_a_service("systemd_262_runs_a_service", SystemdVersion::V262);
}

fn runs_a_service(test: &str, version: SystemdVersion) {
    let Some(systemd) = boot(test, version) else { return };
    assert_eq!(systemd.version(), version);
    put_notify_service(&systemd);

    systemd.start_unit(UNIT);

    assert_eq!(systemd.show(UNIT, "ActiveState"), "active");
    assert_eq!(systemd.show(UNIT, "StatusText"), "happy");
    systemd.wait_journal(UNIT, |line| line.ends_with(": serving"), soon());
    let inside = systemd.main_pid(UNIT).unwrap();
    let main = systemd.main(UNIT);
    assert_eq!(systemd.host_pid(inside), Some(main));
    assert_eq!(systemd.inside_pid(main), Some(inside));
    assert!(systemd.processes().contains(&main));
    // The shell has become the sleep before or after it was ready.
    let becomes = || (process::arguments(main)[0] == "sleep").then_some(());
    assert!(recheck(soon(), becomes).is_some());

    let stopped = systemd.systemctl(&["stop", UNIT]);

    assert!(stopped.success(), "{stopped:?}");
    assert!(exited(main, Instant::now()));
    assert_eq!(systemd.main_pid(UNIT), None);
    assert_eq!(systemd.show(UNIT, "ActiveState"), "inactive");
}

#[test]
fn two_boxes_know_nothing_of_each_other() {
    let test = "two_boxes_know_nothing_of_each_other";
    let Some(one) = boot(test, SystemdVersion::V257) else { return };
    let Some(other) = boot(test, SystemdVersion::V254) else { return };
    for systemd in [&one, &other] {
        put_notify_service(systemd);
        systemd.start_unit(UNIT);
    }
    let (main, other_main) = (one.main(UNIT), other.main(UNIT));
    assert_ne!(main, other_main);
    assert_eq!(one.inside_pid(other_main), None);
    assert_eq!(one.inside_pid(std::process::id()), None);

    drop(other);

    assert!(exited(other_main, Instant::now()));
    assert_eq!(one.main(UNIT), main);
    assert_eq!(one.show(UNIT, "ActiveState"), "active");
}

#[test]
fn drop_leaves_no_process_and_no_control_group() {
    let test = "drop_leaves_no_process_and_no_control_group";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    put_notify_service(&systemd);
    systemd.start_unit(UNIT);
    let command = systemd.start(&["sleep", "1000"]);
    recheck(soon(), || (process::children(command.pid()).len() == 1).then_some(())).unwrap();
    let processes = systemd.processes();
    assert!(processes.len() >= 4, "systemd, the journal, and two that sleep: {processes:?}");
    let group = control_group(systemd.name());
    assert!(group.as_ref().is_none_or(|group| group.is_dir()));
    let folder = systemd.folder().path().to_owned();

    drop(systemd);

    for pid in processes {
        assert!(exited(pid, Instant::now()), "{pid}");
    }
    assert!(command.finish(soon()).is_ok(), "what ran inside has ended");
    assert!(group.is_none_or(|group| !group.exists()));
    assert!(!folder.exists());
}

/// The process that is killed must not be this one, so the test runs itself in another.
#[test]
fn killing_the_test_leaves_no_process_and_no_control_group() {
    const ROLE: &str = "TESTKIT_HOLDS_SYSTEMD";
    let test = "killing_the_test_leaves_no_process_and_no_control_group";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    if env::var_os(ROLE).is_some() {
        let folder = systemd.folder().path().display();
        println!("booted {} {} {folder}", systemd.init(), systemd.name());
        assert!(!exited(systemd.init(), soon()), "ends only with this process");
        return;
    }
    drop(systemd);
    let again = Launch::of(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, "1")
        .start();
    let line = again.wait_line(|line| line.contains("booted "), soon()).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let [.., init, name, folder] = words[..] else { panic!("{line}") };
    let init: Pid = init.parse().unwrap();
    assert!(process::is_alive(init));

    signal(again.pid(), Signal::KILL);

    assert!(exited(init, soon()));
    let left = control_group(name).into_iter().chain([PathBuf::from(folder)]);
    for path in left {
        assert!(recheck(soon(), || (!path.exists()).then_some(())).is_some(), "{path:?}");
    }
}

#[test]
fn what_is_installed_runs_as_any_user() {
    let test = "what_is_installed_runs_as_any_user";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    let script = systemd.folder().write("script", "#!/bin/sh\necho one $(id -u)\n");
    systemd.install(script, "/opt/some/where/program");
    systemd.put_unit(
        UNIT,
        "[Service]\nType=oneshot\nExecStart=/opt/some/where/program\nDynamicUser=yes\n",
    );

    systemd.start_unit(UNIT);

    let line = systemd.wait_journal(UNIT, |line| line.contains(": one "), soon());
    let user: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((61184..=65519).contains(&user), "{user} is not of those that systemd hands out");

    // A process that runs the old one does not keep the new one out.
    let old = systemd.start(&["/opt/some/where/program"]);
    let script = systemd.folder().write("script", "#!/bin/sh\necho two\n");
    systemd.install(script, "/opt/some/where/program");
    assert_eq!(systemd.run(&["/opt/some/where/program"]).stdout, "two\n");
    drop(old);
}

#[test]
fn files_are_written_inside_whatever_links_say() {
    let test = "files_are_written_inside_whatever_links_say";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    assert_eq!(systemd.read("/etc/none/such"), None);
    systemd.write("/etc/made/for/this", "text\n");
    assert_eq!(systemd.read("/etc/made/for/this").as_deref(), Some("text\n"));
    assert_eq!(systemd.run(&["cat", "/etc/made/for/this"]).stdout, "text\n");

    // An absolute link means a place inside, though it is followed outside.
    let name = format!("testkit-{}", systemd.name());
    assert!(systemd.run(&["ln", "-s", "/run", "/srv/link"]).success());
    systemd.write(&format!("/srv/link/{name}"), "inside\n");
    assert!(!Path::new("/run").join(&name).exists());
    assert_eq!(systemd.run(&["cat", &format!("/run/{name}")]).stdout, "inside\n");
    assert_eq!(systemd.read(&format!("/srv/link/{name}")).as_deref(), Some("inside\n"));
}

#[test]
fn the_folder_is_one_place_inside_and_outside() {
    let test = "the_folder_is_one_place_inside_and_outside";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    let folder = systemd.folder();
    let path = folder.path().display();
    systemd.put_unit(
        UNIT,
        &format!(
            "[Service]\nType=oneshot\nDynamicUser=yes\nReadWritePaths={path}\n\
             ExecStart=/bin/sh -c 'cat {path}/from-outside >{path}/from-inside'\n"
        ),
    );
    folder.write("from-outside", "hello\n");
    systemd.start_unit(UNIT);
    assert_eq!(folder.read("from-inside").as_deref(), Some("hello\n"));
}

#[test]
fn a_reload_that_blocks_is_waited_for() {
    let test = "a_reload_that_blocks_is_waited_for";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    put_notify_service(&systemd);
    assert!(systemd.run(&["mkfifo", &systemd.folder().join("go").to_string_lossy()]).success());
    systemd.start_unit(UNIT);

    let reload = systemd.start(&["systemctl", "reload", UNIT]);

    systemd.wait_show(UNIT, "ActiveState", |state| state == "reloading", soon());
    assert!(process::is_alive(reload.pid()));
    fs::write(systemd.folder().join("go"), "go\n").unwrap();
    let finished = reload.finish(soon()).unwrap();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(systemd.show(UNIT, "ActiveState"), "active");
}

#[test]
fn a_service_that_fails_is_shown_with_its_journal() {
    let test = "a_service_that_fails_is_shown_with_its_journal";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    systemd.put_unit(
        UNIT,
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo out of paper; exit 7'\n",
    );
    assert!(!systemd.systemctl(&["start", UNIT]).success());
    systemd.wait_journal(UNIT, |line| line.ends_with("out of paper"), soon());

    let by_start = panic_of(|| systemd.start_unit(UNIT));
    let by_main = panic_of(|| _ = systemd.main(UNIT));
    let by_wait = panic_of(|| {
        systemd.wait_show(UNIT, "ActiveState", |state| state == "active", Instant::now());
    });

    for message in [by_start, by_main, by_wait] {
        assert!(message.contains("status=7"), "{message}");
        assert!(message.contains("out of paper"), "{message}");
    }
}

#[test]
fn an_unknown_property_is_no_empty_one() {
    let test = "an_unknown_property_is_no_empty_one";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    assert_eq!(systemd.show("none.service", "LoadState"), "not-found");
    assert_eq!(systemd.show("none.service", "Description"), "none.service");
    assert_eq!(systemd.show("none.service", "StatusText"), "");
    let message = panic_of(|| _ = systemd.show("none.service", "MainPiD"));
    assert!(message.contains("has no MainPiD"), "{message}");
}

#[test]
fn a_socket_unit_is_reached_from_outside() {
    let test = "a_socket_unit_is_reached_from_outside";
    let Some(systemd) = boot(test, SystemdVersion::V257) else { return };
    let socket = systemd.folder().join("socket");
    systemd.put_unit(
        "greet.socket",
        &format!("[Socket]\nListenStream={}\nAccept=yes\n", socket.display()),
    );
    systemd.put_unit(
        "greet@.service",
        "[Service]\nStandardInput=socket\nExecStart=/bin/sh -c 'read name; echo hello $name'\n",
    );
    systemd.start_unit("greet.socket");

    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.write_all(b"world\n").unwrap();

    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello world\n");
    // And what listens outside is reached from inside.
    let path = systemd.folder().join("outside");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(systemd.run(&["test", "-S", &path.to_string_lossy()]).success());
    drop(listener);
}

/// Boots, or notes that the test is skipped.
fn boot(test: &str, version: SystemdVersion) -> Option<Systemd> {
    match Systemd::boot(version) {
        Ok(systemd) => Some(systemd),
        Err(reason) => {
            skipped_test(test, &reason);
            None
        }
    }
}

fn put_notify_service(systemd: &Systemd) {
    let folder = systemd.folder().path().display().to_string();
    systemd.put_unit(UNIT, &NOTIFY_SERVICE.replace("%FOLDER%", &folder));
}

/// Returns where the control group of a box is seen here; `None` if no hierarchy is.
fn control_group(name: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchy = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then_some(place)
    });
    Some(Path::new(hierarchy?).join(format!("sdbox-{name}")))
}

fn panic_of(action: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(action)).unwrap_err();
    *panic.downcast::<String>().unwrap()
}
