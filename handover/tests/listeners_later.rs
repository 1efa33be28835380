//! Listeners that come and go while the service runs, and who has them open.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::fs;
use std::net::{SocketAddr, TcpStream};

use handover_testkit::process::{fds, signal};
use handover_testkit::{KeepAlive, Load, Pid, Signal, recheck, soon};

use listeners::*;

in_both_runtimes! {
    a_listener_kept_for_later_queues_until_it_is_claimed,
    a_listener_kept_for_later_and_never_claimed_goes_on_to_the_next_generation,
    a_listener_added_after_ready_belongs_to_later_handovers,
    nothing_can_be_claimed_during_an_upgrade,
    a_listener_that_is_dropped_is_closed_at_once_and_not_handed_over,
    a_name_kept_for_later_may_be_bound_elsewhere,
    a_predecessor_that_drains_has_closed_its_listeners,
    children_of_the_service_get_none_of_its_descriptors,
    a_listener_that_only_a_clone_accepts_from_does_not_keep_a_stop_waiting,
}

fn a_listener_kept_for_later_queues_until_it_is_claimed(runtime: &str) {
    let port = Port::reserve();
    let control = format!("runtime {runtime}\ntcp control 127.0.0.1:0\n");
    let subject = Subject::start(&format!("{control}tcp web {}\n", port.v4()));
    let successor = subject.upgrade_to(&format!("{control}later web\nlater none\n"));
    assert_eq!(subject.line("later web"), "later web true");
    assert_eq!(subject.line("later none"), "later none false");
    let clients = queue_up(port.v4(), 50);
    let load = Load::echo(port.v4()).start();

    let listen = format!("!listen tcp web {}", port.v4());
    assert_eq!(subject.ask(subject.address("control"), &listen), "ok");

    assert_eq!(answers(clients), [successor].into());
    load.wait_answers(10, soon()).unwrap();
    load.stop().assert_nothing_lost();
    assert_eq!(subject.count("before_bind web"), 1);
}

fn a_listener_kept_for_later_and_never_claimed_goes_on_to_the_next_generation(runtime: &str) {
    let port = Port::reserve();
    let control = format!("runtime {runtime}\ntcp control 127.0.0.1:0\n");
    let claims = format!("{control}tcp web {}\n", port.v4());
    let subject = Subject::start(&claims);
    subject.upgrade_to(&format!("{control}later web\n"));
    let clients = queue_up(port.v4(), 50);
    subject.upgrade();
    let last = subject.upgrade_to(&claims);
    assert_eq!(answers(clients), [last].into());
}

fn a_listener_added_after_ready_belongs_to_later_handovers(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\ntcp control 127.0.0.1:0\n"));
    let control = subject.address("control");
    for (kind, name, address) in [("tcp", "added", "127.0.0.1:0"), ("unix", "path", "./s")] {
        assert_eq!(subject.ask(control, &format!("!listen {kind} {name} {address}")), "ok");
    }
    let added = subject.address("added");
    assert_eq!(asked(added), subject.pid());
    let loads = [Load::echo(added).start(), Load::echo(subject.folder.join("s")).start()];
    subject.configure(&format!(
        "runtime {runtime}\ntcp control 127.0.0.1:0\ntcp added 127.0.0.1:0\nunix path ./s\n"
    ));
    for _ in 0..3 {
        let successor = subject.upgrade();
        for load in &loads {
            load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        }
    }
    loads.into_iter().for_each(|load| load.stop().assert_nothing_lost());
    assert_eq!(subject.count(&format!("added listening on {added}")), 4);
}

fn nothing_can_be_claimed_during_an_upgrade(runtime: &str) {
    let config = format!("runtime {runtime}\ntcp control 127.0.0.1:0\n");
    let subject = Subject::start(&config);
    let control = subject.address("control");
    let fifo = make_fifo(&subject.folder, "fifo");
    subject.configure(&format!("{config}wait {}\n", fifo.display()));
    let predecessor = subject.pid();
    signal(predecessor, Signal::HUP);
    subject.line("initialising ");

    let listen = subject.ask(control, "!listen tcp new 127.0.0.1:0");
    let descriptor = subject.ask(control, "!descriptor file new ./file");

    let why = "an upgrade is under way: try again when its verdict is known \
               (this process serves on)";
    assert_eq!(listen, format!("error cannot claim \"new\": {why}"));
    assert_eq!(descriptor, format!("error cannot claim \"new\": {why}"));
    fs::write(fifo, "").unwrap();
    subject.adopt_serving();
    assert_eq!(subject.ask(control, "!listen tcp new 127.0.0.1:0"), "ok");
}

fn a_listener_that_is_dropped_is_closed_at_once_and_not_handed_over(runtime: &str) {
    let config = format!("runtime {runtime}\ntcp control 127.0.0.1:0\n");
    // The control socket last: once it is served, the others are in place.
    let subject = Subject::start(&format!(
        "runtime {runtime}\ntcp idle 127.0.0.1:0 idle\nunix path ./s idle\ntcp control 127.0.0.1:0\n"
    ));
    let (control, idle) = (subject.address("control"), subject.address("idle"));
    TcpStream::connect(idle).unwrap();

    for name in ["idle", "path"] {
        assert_eq!(subject.ask(control, &format!("!drop {name}")), "ok");
    }

    let refused = TcpStream::connect(idle).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!subject.folder.join("s").exists());
    // Both claims bind anew.
    subject.upgrade_to(&format!("{config}tcp idle 127.0.0.1:0\nunix path ./s\n"));
    assert_eq!(subject.count("before_bind idle"), 2);
    assert_eq!(subject.count("before_bind path"), 2);
    assert!(subject.folder.join("s").exists());
}

fn a_name_kept_for_later_may_be_bound_elsewhere(runtime: &str) {
    let ports = [Port::reserve(), Port::reserve()];
    let config = format!("runtime {runtime}\ntcp control 127.0.0.1:0\n");
    let subject = Subject::start(&format!("{config}tcp web {}\n", ports[0].v4()));
    let control = subject.address("control");
    subject.upgrade_to(&format!("{config}later web\n"));

    assert_eq!(subject.ask(control, &format!("!listen tcp web {}", ports[1].v4())), "ok");

    await_refused(ports[0].v4());
    let last = subject.upgrade_to(&format!("{config}tcp web {}\n", ports[1].v4()));
    assert_eq!(asked(ports[1].v4()), last);
    assert_eq!(subject.count("before_bind web"), 2);
}

fn a_predecessor_that_drains_has_closed_its_listeners(runtime: &str) {
    let config = format!(
        "runtime {runtime}\ndrain 100\ntcp web 127.0.0.1:0\nunix path ./s\nudp u 127.0.0.1:0\n\
         seqpacket q ./q\ndatagram d ./d\n"
    );
    let subject = Subject::start(&config);
    let web = subject.address("web");
    let predecessor = subject.pid();
    let kept = KeepAlive::echo(web).connections(3).start();
    kept.wait_open(soon()).unwrap();
    let listeners = listening_sockets(predecessor);
    assert_eq!(listeners.len(), 3, "of five sockets these listen");

    let successor = subject.upgrade();

    let closed = || listening_sockets(predecessor).is_empty().then_some(());
    recheck(soon(), closed).expect("the predecessor has closed them");
    assert_eq!(listening_sockets(successor), listeners);
    // With the successor stopped nobody accepts, whatever waits.
    kept.wait_pings(20, soon()).unwrap();
    signal(successor, Signal::TERM);
    subject.line(&format!("drained {successor} "));
    await_refused(web);
    kept.wait_pings(20, soon()).unwrap();
    assert_eq!(kept.stop().ends, []);
    subject.await_gone(predecessor);
}

fn children_of_the_service_get_none_of_its_descriptors(runtime: &str) {
    let subject = Subject::start(&format!(
        "runtime {runtime}\ntcp web 127.0.0.1:0\nunix path ./s\nudp u 127.0.0.1:0\n\
         datagram d ./d\nseqpacket q ./q\nfile f ./file\npipe p -\npair s -\n"
    ));
    let web = subject.address("web");
    let kept = KeepAlive::echo(web).connections(2).start();
    kept.wait_open(soon()).unwrap();
    for generation in 1..=3 {
        let child: Pid = subject.ask(web, "!child").parse().unwrap();
        let is_sleep = || fs::read(format!("/proc/{child}/comm")).ok().filter(|n| n == b"sleep\n");
        recheck(soon(), is_sleep).expect("the child has started");
        // While it starts it has files of its own open; what it was given it never closes.
        let leaked = || fds(child).split_off(&3);
        recheck(soon(), || leaked().is_empty().then_some(()))
            .unwrap_or_else(|| panic!("in generation {generation}: {:?}", leaked()));
        for (number, name) in fds(subject.pid()).range(3..) {
            assert!(is_close_on_exec(subject.pid(), *number), "{number}: {name}");
        }
        subject.upgrade();
    }
}

fn a_listener_that_only_a_clone_accepts_from_does_not_keep_a_stop_waiting(runtime: &str) {
    let config = format!("runtime {runtime}\ndrain 1000\ntcp web 127.0.0.1:0 cloned\n");
    Subject::start(&config).stop();
    let subject = Subject::start(&config);
    let predecessor = subject.pid();
    subject.upgrade_to(&format!("runtime {runtime}\ndrain 1000\n"));
    subject.await_gone(predecessor);
}

/// The sockets that a process has open and that listen (SO_ACCEPTCON shows as a state in
/// proc_pid_net(5)).
fn listening_sockets(pid: Pid) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap();
    let mut listening: Vec<String> = Vec::new();
    for line in read("tcp").lines().chain(read("tcp6").lines()) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if fields[3] == "0A" {
            listening.push(format!("socket:[{}]", fields[9]));
        }
    }
    for line in read("unix").lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if fields[3] == "00010000" {
            listening.push(format!("socket:[{}]", fields[6]));
        }
    }
    sockets(pid).into_iter().filter(|socket| listening.contains(socket)).collect()
}

fn is_close_on_exec(pid: Pid, number: i32) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    // What was closed meanwhile does not leak.
    let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { return true };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    u32::from_str_radix(flags, 8).unwrap() & O_CLOEXEC != 0
}

#[test]
fn accepted_sockets_block_without_a_runtime_and_do_not_with_one() {
    const O_NONBLOCK: u32 = 0o4000;
    for (runtime, blocks) in [("blocking", true), ("tokio", false)] {
        let subject = Subject::start(&format!("runtime {runtime}\ntcp web 127.0.0.1:0\n"));
        let web: SocketAddr = subject.address("web");
        let before = sockets(subject.pid());
        let kept = KeepAlive::echo(web).connections(1).start();
        kept.wait_open(soon()).unwrap();
        let accepted = fds(subject.pid())
            .into_iter()
            .find(|(_, name)| name.starts_with("socket:") && !before.contains(name));
        let (number, _) = accepted.unwrap();
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", subject.pid())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = u32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & O_NONBLOCK == 0, blocks, "{runtime}: {info}");
        // A connection that is idle for some pings' time is not taken for ended.
        kept.wait_pings(5, soon()).unwrap();
        assert_eq!(kept.stop().ends, []);
    }
}
