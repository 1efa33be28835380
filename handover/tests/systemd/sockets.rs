//! Sockets of .socket units, by name.

use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use handover_testkit::{Load, Pid, Systemd, binary, soon};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::stage::{UNIT, Unit, free_address};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    the_first_connection_starts_the_service_and_reloads_keep_all_sockets,
}

on_systemd_257! {
    one_name_for_a_stream_and_a_datagram_socket,
    the_unit_and_the_program_have_to_agree,
    a_socket_may_have_to_come_from_systemd_or_must_not,
    what_nobody_claims_is_named_and_a_later_generation_can_claim_it,
    a_socket_that_is_added_to_the_unit_is_found_at_the_next_start,
}

fn the_first_connection_starts_the_service_and_reloads_keep_all_sockets(systemd: Systemd) {
    let arguments =
        "all:tcp:http udp:dns=ADDRESS unix:local seqpacket:packets datagram:notes fifo:lines";
    let sockets = "http.socket dns.socket local.socket packets.socket notes.socket lines.socket";
    let lines = format!("Type=notify-reload\nSockets={sockets}\nNonBlocking=no");
    let unit = Unit::new(systemd, arguments, &lines);
    let second = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let socket = |name: &str, what: &str| {
        let text = format!("[Socket]\n{what}\nFileDescriptorName={name}\nService={UNIT}\n");
        unit.put(&format!("{name}.socket"), &text);
    };
    socket("http", &format!("ListenStream=ADDRESS\nListenStream={second}"));
    socket("dns", "ListenDatagram=ADDRESS");
    socket("local", "ListenStream=FOLDER/local");
    socket("packets", "ListenSequentialPacket=FOLDER/packets");
    socket("notes", "ListenDatagram=FOLDER/notes");
    socket("lines", "ListenFIFO=FOLDER/lines");
    let start: Vec<&str> = ["start"].into_iter().chain(sockets.split(' ')).collect();
    assert!(unit.systemd.systemctl(&start).success());
    assert_eq!(unit.show("ActiveState"), "inactive");

    let load = unit.load();
    let mut main = unit.main_pid();
    let beside = Load::http(second).rate(50).start();
    for _ in 0..3 {
        // What was passed is taken, and nobody else is told of it.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"] {
            let line = unit.wait_journal(&format!("variable {main} {name}="));
            assert!(line.trim_end().ends_with(&format!("{name}=")), "{line}");
        }
        everything_is_answered_by(&unit, main);
        load.wait_answered_by(|pid| pid == main, soon()).unwrap();
        beside.wait_answered_by(|pid| pid == main, soon()).unwrap();
        assert!(unit.reload());
        main = unit.main_pid();
    }
    everything_is_answered_by(&unit, main);

    // systemd holds the sockets: whoever comes after a stop starts the service again.
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    load.wait_answered_by(|pid| pid != main, soon()).unwrap();
    load.stop().assert_nothing_lost();
    beside.stop().assert_nothing_lost();
}

/// Asks at each of the other sockets.
fn everything_is_answered_by(unit: &Unit, main: Pid) {
    let path = |name: &str| unit.systemd.folder().join(name);
    let own = main.to_string();
    let mut buffer = [0; 64];

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    udp.send_to(b"who", unit.address).unwrap();
    let bytes = udp.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..bytes], own.as_bytes());

    let mut stream = UnixStream::connect(path("local")).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.contains(&format!("\r\n\r\n{own} ")), "{answer}");

    let packets = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    packets.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    packets.connect(&SockAddr::unix(path("packets")).unwrap()).unwrap();
    let bytes = std::io::Read::read(&mut &packets, &mut buffer).unwrap();
    assert_eq!(&buffer[..bytes], own.as_bytes());

    let notes = UnixDatagram::unbound().unwrap();
    notes.send_to(format!("for {own}").as_bytes(), path("notes")).unwrap();
    unit.wait_journal(&format!("datagram {own} for {own}"));
}

fn one_name_for_a_stream_and_a_datagram_socket(systemd: Systemd) {
    let lines = "Type=notify-reload\nSockets=dns.socket";
    let unit = Unit::new(systemd, "udp:dns tcp:dns=ADDRESS", lines);
    let text = "[Socket]\nListenStream=ADDRESS\nListenDatagram=ADDRESS\nFileDescriptorName=dns\n\
                Service=subject.service\n";
    unit.put("dns.socket", text);
    unit.systemd.start_unit("dns.socket");
    for _ in 0..2 {
        let main = unit.answered_by();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        udp.send_to(b"who", unit.address).unwrap();
        let mut buffer = [0; 64];
        let bytes = udp.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..bytes], main.to_string().as_bytes());
        assert!(unit.reload());
    }
}

/// A unit whose socket is at the usual address and is called `http`.
fn with_http_socket(systemd: Systemd, arguments: &str) -> Unit {
    let lines = "Type=notify-reload\nSockets=http.socket\nEnvironment=SUBJECT_LOG=1";
    let unit = Unit::new(systemd, arguments, lines);
    let text = "[Socket]\nListenStream=ADDRESS\nFileDescriptorName=http\nService=subject.service\n";
    unit.put("http.socket", text);
    unit.systemd.start_unit("http.socket");
    unit
}

fn the_unit_and_the_program_have_to_agree(systemd: Systemd) {
    let unit = with_http_socket(systemd, "tcp:http=127.0.0.1:1");
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    unit.wait_journal(&format!(
        "systemd has passed another socket by that name (tcp {})",
        unit.address
    ));

    unit.write("udp:http=ADDRESS", "Type=notify-reload\nSockets=http.socket");
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    let told = unit.systemd.journal(UNIT).matches("systemd has passed another socket").count();
    assert!(told >= 2, "the type is another");

    // Port 0 is any.
    unit.write("tcp:http=127.0.0.1:0", "Type=notify-reload\nSockets=http.socket");
    unit.systemd.systemctl(&["reset-failed", UNIT, "http.socket"]);
    unit.systemd.start_unit("http.socket");
    let main = unit.answered_by();
    assert_eq!(main, unit.main_pid());
}

fn a_socket_may_have_to_come_from_systemd_or_must_not(systemd: Systemd) {
    let unit = with_http_socket(systemd, "only:tcp:https");
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    unit.wait_journal("systemd has passed no socket by that name, but http");

    unit.systemd.systemctl(&["reset-failed", UNIT, "http.socket"]);
    unit.write("never:tcp:http=ADDRESS", "Type=notify-reload\nSockets=http.socket");
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    unit.wait_journal("is in use by another socket");

    // What was bound by a predecessor has not come from systemd, and the other way round.
    unit.systemd.systemctl(&["stop", "http.socket"]);
    unit.systemd.systemctl(&["reset-failed", UNIT]);
    unit.write("never:tcp:http=ADDRESS", "Type=notify-reload");
    unit.start();
    assert!(unit.reload());
    assert_eq!(unit.answered_by(), unit.main_pid());
}

fn what_nobody_claims_is_named_and_a_later_generation_can_claim_it(systemd: Systemd) {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let unit = with_http_socket(systemd, "control:/run/control");
    unit.start();
    let warning = unit.wait_journal("not claimed");
    assert!(warning.contains("WARN") && warning.contains("name=\"http\""), "{warning}");
    let upgrade = |arguments: &[&str]| {
        let command = ["/usr/local/bin/handover", "upgrade", "--socket", "/run/control", "--"];
        let ran = unit.systemd.run(&[&command[..], arguments].concat());
        assert!(ran.success(), "{ran:?}");
    };
    upgrade(&["control:/run/control"]);
    upgrade(&["control:/run/control", "only:tcp:http"]);
    assert_eq!(unit.answered_by(), unit.main_pid());
}

fn a_socket_that_is_added_to_the_unit_is_found_at_the_next_start(systemd: Systemd) {
    let unit = with_http_socket(systemd, "tcp:http tcp:more=127.0.0.1:0");
    unit.start();
    let lines = "Type=notify-reload\nSockets=http.socket more.socket";
    unit.write("tcp:http tcp:more=127.0.0.1:0", lines);
    let more = free_address();
    let text = format!(
        "[Socket]\nListenStream={more}\nFileDescriptorName=more\nService=subject.service\n"
    );
    unit.put("more.socket", &text);
    // While the service runs its socket cannot be started: it would not get it.
    assert!(!unit.systemd.systemctl(&["start", "more.socket"]).success());
    assert!(unit.reload());
    let main = unit.main_pid();
    assert_eq!(
        unit.systemd.journal(UNIT).matches(&format!("{main} more ")).count(),
        1,
        "it is bound"
    );

    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    unit.systemd.start_unit("more.socket");
    let next = unit.answered_by();
    assert_ne!(next, main);
    unit.wait_journal(&format!("claimed {next} more {more}"));
    assert!(unit.reload());
    unit.wait_journal(&format!("claimed {} more {more}", unit.main_pid()));
}
