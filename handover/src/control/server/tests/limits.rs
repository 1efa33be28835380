//! Nobody takes more than a share.

use super::*;

#[test]
fn the_longest_line_is_taken_and_a_longer_one_refused() {
    let mut rig = Rig::new();
    let line = |bytes: usize| {
        let empty = "{\"request\":\"\"}\n".len();
        format!("{{\"request\":\"{}\"}}\n", "x".repeat(bytes - empty))
    };
    let hand = rig.connect();
    hand.send(&line(MAX_REQUEST_BYTES));
    assert!(matches!(rig.next_request().1, Asked::Command { .. }));

    let mut hand = rig.connect();
    hand.send(&line(MAX_REQUEST_BYTES + 1));
    rig.turn_until(|_| hand.has_line());
    assert_eq!(hand.read().unwrap()["code"], "too-long");
    assert_eq!(hand.read(), None);
}

#[test]
fn a_line_without_end_is_refused_while_it_is_written() {
    let mut rig = Rig::new();
    let path = rig.path.clone();
    let (answer, sent) = rig.serve_during(
        move || {
            let mut hand = Hand::connect(&path);
            let part = vec![b'x'; 1 << 20];
            // It goes through for as long as it is listened to.
            let sent = (0..64).take_while(|_| hand.0.get_ref().write_all(&part).is_ok()).count();
            (hand.read().unwrap(), sent)
        },
        |_, _, asked| panic!("{asked:?}"),
    );
    assert_eq!(answer["code"], "too-long");
    assert!(sent > 0, "the client has not seen a broken pipe before it knew why");
}

#[test]
fn a_reader_that_stalls_misses_events_and_is_told_how_many() {
    const EVENTS: u64 = 10_000;
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send("{\"request\":\"events\"}\n");
    let (client, _, _) = rig.next_request();
    let text = "x".repeat(100);
    for _ in 0..EVENTS {
        rig.server.publish(&event(&text));
    }
    rig.settle_at(Instant::now() + 10 * CONTROL_WRITE_TIMEOUT);
    assert_eq!(rig.server.clients.len(), 1, "who only follows may take its time");
    assert!(rig.server.is_flushed(), "and nobody waits for it");

    let count = move || {
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < EVENTS {
            let event = hand.read().unwrap();
            match event["event"].as_str() {
                Some("missed") => missed += event["events"].as_u64().unwrap(),
                _ => seen += 1,
            }
        }
        (hand, seen, missed)
    };
    let (mut hand, seen, missed) = rig.serve_during(count, |_, _, asked| panic!("{asked:?}"));
    let line = 170;
    assert!(missed > 0 && seen > MAX_CONTROL_BACKLOG_BYTES as u64 / line, "{seen} seen");
    rig.server.publish(&event("last"));
    assert_eq!(hand.read().unwrap()["text"], "last");
    rig.done(client);
    assert_eq!(hand.read().unwrap()["type"], "done");
}

#[test]
fn a_client_that_asks_nothing_is_closed() {
    let mut rig = Rig::new();
    let (mut idle, mut slow, busy) = (rig.connect(), rig.connect(), rig.connect());
    slow.send("{\"request\":");
    busy.send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.settle();
    let began = Instant::now();
    let deadline = rig.server.deadline().unwrap();
    assert!(deadline <= began + CONTROL_REQUEST_TIMEOUT);

    rig.settle_at(deadline - Duration::from_millis(1));
    assert!(!idle.has_line() && !slow.has_line());
    rig.settle_at(began + CONTROL_REQUEST_TIMEOUT);
    for hand in [&mut idle, &mut slow] {
        assert_eq!(hand.read().unwrap()["code"], "bad-request");
        assert_eq!(hand.read(), None);
    }
    drop((idle, slow));
    rig.settle();
    assert_eq!(rig.server.clients.len(), 1, "what is under way takes the time that it takes");
    assert_eq!(rig.server.deadline(), None);
    rig.done(client);
    assert!(rig.server.deadline().is_some(), "the time begins with the answer");
}

#[test]
fn a_client_that_was_told_to_go_and_stays_is_closed() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    rig.settle();
    let late = Instant::now() + CONTROL_REQUEST_TIMEOUT;
    rig.settle_at(late);
    assert_eq!(rig.server.clients.len(), 1);
    rig.settle_at(late + Duration::from_secs(1));
    assert!(rig.server.clients.is_empty());
    drop(hand);
}

#[test]
fn a_client_that_does_not_read_its_answer_is_closed() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send(STATUS);
    let (client, _, _) = rig.next_request();
    // More than the kernel keeps for it.
    let value = Value::from("x".repeat(8 << 20));
    rig.server.answer(client, &Answer::Result { value });
    assert!(!rig.server.is_flushed());
    rig.settle();
    assert!(!is_readable(rig.poller.as_fd()), "there is nothing to do until it reads");
    rig.settle_at(Instant::now() + CONTROL_WRITE_TIMEOUT);
    assert!(rig.server.is_flushed());
    assert!(rig.server.clients.is_empty());
    assert!(hand.0.read_to_end(&mut Vec::new()).is_ok());
}

#[test]
fn a_large_answer_arrives_whole_before_the_next_request_is_taken() {
    let mut rig = Rig::new();
    let value = Value::from("x".repeat(8 << 20));
    let (path, sent) = (rig.path.clone(), value.clone());
    let received = rig.serve_during(
        move || {
            let mut hand = Hand::connect(&path);
            hand.send(STATUS);
            hand.send(STATUS);
            [hand.read().unwrap(), hand.read().unwrap()]
        },
        |server, client, _| server.answer(client, &Answer::Result { value: sent.clone() }),
    );
    assert!(received.iter().all(|answer| answer["value"] == value));
}

#[test]
fn the_longest_idle_client_makes_room_for_a_new_one() {
    let mut rig = Rig::new();
    let mut hands: Vec<Hand> = Vec::new();
    for _ in 0..MAX_CONTROL_CLIENTS {
        hands.push(rig.connect());
        rig.settle();
    }
    // Has just had an answer.
    hands[0].send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.done(client);
    assert_eq!(hands[0].read().unwrap()["type"], "done");
    let new = rig.connect();
    new.send(STATUS);
    assert!(is_status(&rig.next_request().1));
    assert_eq!(hands[1].read().unwrap()["code"], "too-many-clients");
    assert_eq!(hands[1].read(), None);
    assert!(!hands[0].has_line() && !hands[2].has_line());
}

#[test]
fn a_new_client_is_told_when_all_others_wait_for_answers() {
    let mut rig = Rig::new();
    let mut hands: Vec<Hand> = Vec::new();
    for _ in 0..MAX_CONTROL_CLIENTS {
        hands.push(rig.connect());
        hands.last().unwrap().send(STATUS);
        rig.next_request();
    }
    let mut new = rig.connect();
    new.send(STATUS);
    rig.settle();
    assert!(rig.incoming.is_empty());
    assert_eq!(new.read().unwrap()["code"], "too-many-clients");
    assert_eq!(new.read(), None);
    let client = *rig.server.clients.keys().next().unwrap();
    rig.done(client);
    assert_eq!(hands[0].read().unwrap()["type"], "done");
    rig.connect().send(STATUS);
    rig.next_request();
}

#[test]
fn a_thousand_idle_clients_keep_nobody_out() {
    let mut rig = Rig::new();
    let mut hands = std::collections::VecDeque::new();
    for _ in 0..1000 {
        hands.push_back(rig.connect());
        if hands.len() > 4 * MAX_CONTROL_CLIENTS {
            hands.pop_front();
        }
        rig.settle();
        assert!(rig.server.clients.len() <= MAX_CONTROL_CLIENTS + MAX_LEAVING_CLIENTS);
    }
    let mut hand = rig.connect();
    hand.send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.done(client);
    assert_eq!(hand.read().unwrap()["type"], "done");
}

#[test]
fn a_flood_is_accepted_in_parts() {
    let mut rig = Rig::new();
    let hands: Vec<Hand> = (0..50).map(|_| rig.connect()).collect();
    rig.server.step(Instant::now());
    assert_eq!(rig.server.clients.len(), ACCEPTS_PER_STEP);
    assert!(is_readable(rig.poller.as_fd()), "the poller brings it back");
    rig.settle();
    assert_eq!(rig.server.clients.len(), hands.len());
}

#[test]
fn a_process_without_descriptors_rests() {
    let name = "control::server::tests::limits::a_process_without_descriptors_rests";
    if env::var_os(ROLE).is_none() {
        let run = Launch::of(env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ROLE, "1")
            .limit_open_fds(64, 64);
        let finished = run.start().finish(soon()).unwrap();
        assert!(finished.status.success(), "{}", finished.stdout());
        return;
    }
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send(STATUS);
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    rig.server.step(Instant::now());
    assert!(!is_readable(rig.poller.as_fd()), "it would be a busy loop");
    assert!(rig.server.deadline().unwrap() > Instant::now());
    drop(files);
    // It tries again by itself.
    assert!(is_status(&rig.next_request().1));
}

#[test]
fn what_happens_again_and_again_is_logged_once_a_minute() {
    let (mut complaint, mut logged) = (Complaint::default(), Vec::new());
    let began = Instant::now();
    for second in 0..150 {
        complaint.say(began + Duration::from_secs(second), |times| logged.push(times));
    }
    assert_eq!(logged, [1, 60, 60]);
}
