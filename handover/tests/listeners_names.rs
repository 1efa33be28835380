//! The same names at other addresses, other names at the same address, and more or fewer of them:
//! nothing that a client sends on the way is lost.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::time::Duration;

use handover_testkit::process::signal;
use handover_testkit::{Fault, Load, Pid, Signal, soon};

use listeners::*;

/// Requests a second: what a debug build can answer beside other tests.
const RATE: u32 = 150;

in_both_runtimes! {
    port_zero_stays_on_its_port_in_every_generation,
    the_default_name_is_the_address_asked_for,
    listeners_that_share_an_address_grow_and_shrink_in_number,
    a_successor_that_fails_has_not_taken_connections_of_a_shared_address,
    a_name_that_moves_is_bound_anew_and_the_old_address_loses_nothing,
    addresses_swapped_between_names_keep_their_sockets,
    a_listener_that_is_renamed_keeps_its_socket,
    a_name_may_change_its_kind,
    a_wildcard_may_become_a_single_address_of_the_same_port_and_back,
}

fn port_zero_stays_on_its_port_in_every_generation(runtime: &str) {
    let config = format!("runtime {runtime}\ntcp a 127.0.0.1:0\ntcp b 127.0.0.1:0\n");
    let subject = Subject::start(&config);
    let addresses = ["a", "b"].map(|name| subject.address(name));
    assert_ne!(addresses[0], addresses[1]);
    for _ in 0..5 {
        let successor = subject.upgrade();
        assert_eq!(addresses.map(|address| asked(address)), [successor; 2]);
    }
    for (name, address) in ["a", "b"].into_iter().zip(addresses) {
        assert_eq!(subject.count(&format!("{name} listening on {address}")), 6);
        assert_eq!(subject.count(&format!("before_bind {name}")), 1);
    }
}

fn the_default_name_is_the_address_asked_for(runtime: &str) {
    let subject = Subject::start(&format!(
        "runtime {runtime}\ntcp - 127.0.0.1:0\nudp - 127.0.0.1:0\nunix - ./s\ndatagram - ./d\n"
    ));
    let sockets = sockets(subject.pid());
    // The same sockets by their names, in any order.
    let successor = subject.upgrade_to(&format!(
        "runtime {runtime}\ndatagram datagram:./d ./d\nunix ./s ./s\n\
         udp udp:127.0.0.1:0 127.0.0.1:0\ntcp 127.0.0.1:0 127.0.0.1:0\n"
    ));
    assert!(subject.count("before_bind") == 4, "none is bound anew");
    let kept = sockets.intersection(&self::sockets(successor)).count();
    assert_eq!(kept, 4, "{sockets:?}");
}

fn listeners_that_share_an_address_grow_and_shrink_in_number(runtime: &str) {
    let port = Port::reserve();
    let address = port.v4();
    let workers = |count: usize| {
        (0..count).fold(format!("runtime {runtime}\n"), |config, number| {
            config + &format!("tcp worker-{number} {address} reuse_port\n")
        })
    };
    let subject = Subject::start(&workers(2));
    let load = Load::echo(address).rate(RATE).start();
    for count in [4, 1, 3, 2, 6, 1] {
        let successor = subject.upgrade_to(&workers(count));
        load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        load.wait_answers(50, soon()).unwrap();
    }
    load.stop().assert_nothing_lost();
}

/// Whoever listens on a shared address gets connections at once, so a successor must not before it
/// serves.
fn a_successor_that_fails_has_not_taken_connections_of_a_shared_address(runtime: &str) {
    let port = Port::reserve();
    let address = port.v4();
    let one = format!("runtime {runtime}\ntcp worker-0 {address} reuse_port\n");
    let subject = Subject::start(&one);
    let fifo = make_fifo(&subject.folder, "fifo");
    let load = Load::echo(address).rate(RATE).start();
    subject.configure(&format!(
        "{one}tcp worker-1 {address} reuse_port\ntcp worker-2 {address} reuse_port\n\
         wait {}\ntcp wrong 192.0.2.1:1\n",
        fifo.display()
    ));
    // The last claim fails at once, the wait is not reached.
    subject.upgrade_fails();
    subject.configure(&format!(
        "{one}tcp worker-1 {address} reuse_port\ntcp worker-2 {address} reuse_port\nwait {}\n",
        fifo.display()
    ));
    let before = subject.service.line_count();
    signal(subject.pid(), Signal::HUP);
    let line = subject.line_after(before, "initialising ");
    let successor: Pid = line.split(' ').nth(1).unwrap().parse().unwrap();
    load.wait_answers(100, soon()).unwrap();

    signal(successor, Signal::KILL);

    subject.line_after(before, "verdict the upgrade failed");
    load.wait_answers(50, soon()).unwrap();
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.keys().copied().collect::<Vec<_>>(), [subject.pid()]);
    assert!(outcome.latency(1.0) < Duration::from_secs(1), "{outcome}");
}

fn a_name_that_moves_is_bound_anew_and_the_old_address_loses_nothing(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\ntcp web 127.0.0.1:0 slow=5\n"));
    let old = subject.address("web");
    let port = Port::reserve();
    let new = port.v4();
    let (predecessor, clients) = (subject.pid(), queue_up(old, 200));

    let successor = subject.upgrade_to(&format!("runtime {runtime}\ntcp web {new}\n"));

    assert_eq!(asked(new), successor);
    assert_eq!(answers(clients), [predecessor].into());
    subject.await_gone(predecessor);
    await_refused(old);
}

fn addresses_swapped_between_names_keep_their_sockets(runtime: &str) {
    let ports = [Port::reserve(), Port::reserve()];
    let (one, two) = (ports[0].v4(), ports[1].v4());
    let config = |a, b| format!("runtime {runtime}\ntcp a {a}\ntcp b {b}\n");
    let subject = Subject::start(&config(one, two));
    let loads = [one, two].map(|address| Load::echo(address).start());
    for (a, b) in [(two, one), (one, two)] {
        let before = sockets(subject.pid());
        let successor = subject.upgrade_to(&config(a, b));
        assert_eq!(before.intersection(&sockets(successor)).count(), 2);
        for load in &loads {
            load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        }
    }
    loads.into_iter().for_each(|load| load.stop().assert_nothing_lost());
    assert_eq!(subject.count("before_bind"), 2);
}

fn a_listener_that_is_renamed_keeps_its_socket(runtime: &str) {
    let port = Port::reserve();
    let address = port.v4();
    let subject = Subject::start(&format!("runtime {runtime}\ntcp old {address}\nunix u ./s\n"));
    let load = Load::echo(address).start();
    load.wait_answers(5, soon()).unwrap();
    let successor =
        subject.upgrade_to(&format!("runtime {runtime}\ntcp new {address}\nunix v ./s\n"));
    load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    load.stop().assert_nothing_lost();
    assert_eq!(subject.count("before_bind new") + subject.count("before_bind v"), 0);
    assert!(subject.folder.join("s").exists());
}

fn a_name_may_change_its_kind(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\ntcp api 127.0.0.1:0 slow=5\n"));
    let (old, predecessor) = (subject.address("api"), subject.pid());
    let clients = queue_up(old, 100);

    let successor = subject.upgrade_to(&format!("runtime {runtime}\nunix api ./api\n"));

    assert_eq!(answers(clients), [predecessor].into());
    await_refused(old);
    let load = Load::echo(subject.folder.join("api")).start();
    load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    subject.upgrade_to(&format!("runtime {runtime}\nudp api 127.0.0.1:0\n"));
    let outcome = load.stop();
    assert!(outcome.lost.iter().all(|lost| lost.what == Fault::Refused));
    assert!(!subject.folder.join("api").exists(), "the path goes with its listener");
}

fn a_wildcard_may_become_a_single_address_of_the_same_port_and_back(runtime: &str) {
    let reserved = Port::reserve();
    let (address, port) = (reserved.v4(), reserved.number());
    let wildcard = format!("runtime {runtime}\ntcp web 0.0.0.0:{port}\n");
    let single = format!("runtime {runtime}\ntcp web {address}\n");
    let subject = Subject::start(&wildcard);
    let load = Load::echo(address).rate(RATE).start();
    load.wait_answers(20, soon()).unwrap();
    for config in [&single, &wildcard, &single, &wildcard] {
        // One that fails on the way has taken nothing either.
        subject.configure(&format!("{config}tcp wrong 192.0.2.1:1\n"));
        subject.upgrade_fails();
        let successor = subject.upgrade_to(config);
        load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        load.wait_answers(50, soon()).unwrap();
    }
    load.stop().assert_nothing_lost();
}
