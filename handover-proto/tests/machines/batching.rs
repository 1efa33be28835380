//! How the inventory and the claims are divided into frames.

use handover_proto::*;

use crate::stage::*;

#[test]
fn ten_thousand_listeners_arrive_in_order_sixty_four_at_a_time() {
    let items: Vec<_> = (0..10_000).map(|n| item(&format!("listener-{n}"))).collect();

    let batches = transfer(items.clone());

    assert_eq!(batches.len(), 10_000_usize.div_ceil(MAX_FDS_PER_FRAME));
    assert_eq!(batches.concat(), items);
}

#[test]
fn as_many_descriptors_as_allowed_are_handed_over() {
    let items: Vec<_> = (0..MAX_DESCRIPTORS).map(|n| item(&n.to_string())).collect();

    assert_eq!(transfer(items).concat().len(), MAX_DESCRIPTORS as usize);
}

#[test]
fn more_descriptors_or_states_than_allowed_call_the_handover_off() {
    let many = vec![item("x"); MAX_DESCRIPTORS as usize + 1];
    for (inventory, what) in [
        (Inventory { items: many, ..Inventory::default() }, "descriptors"),
        (Inventory { states: MAX_STATES + 1, ..Inventory::default() }, "states"),
    ] {
        let mut machine = Predecessor::new(predecessor_config(None), inventory, Time::ZERO);

        tell(&mut machine, &hello());

        let cause = Cause::CalledOff { reason: format!("too many {what}") };
        let failed = Outcome::Failed { phase: Phase::Hello, cause };
        assert_eq!(outcome(&mut machine), Some(failed));
    }
}

#[test]
fn the_longest_names_fit_their_frames() {
    for text in ["n".repeat(MAX_NAME_BYTES), "\"".repeat(MAX_NAME_BYTES), "é".repeat(127)] {
        let items = vec![item(&text); 300];

        assert_eq!(transfer(items.clone()).concat(), items);
    }
}

#[test]
fn addresses_that_json_escapes_fit_their_frames() {
    // An abstract Unix address begins with a zero byte and may have more of them.
    for address in ["\0".repeat(108), "\u{1}".repeat(250), "\\".repeat(5000), "/".repeat(16_000)] {
        let item = Item { address: Some(address), ..Item::new(name("unix")) };
        let items = vec![item; 300];

        assert_eq!(transfer(items.clone()).concat(), items);
    }
}

#[test]
fn an_address_that_fits_no_frame_calls_the_handover_off() {
    let long = Item { address: Some("/".repeat(MAX_FRAME_BYTES)), ..Item::new(name("x")) };
    let inventory = Inventory { items: vec![long], states: 0, stderr: false };
    let mut machine = Predecessor::new(predecessor_config(None), inventory, Time::ZERO);

    tell(&mut machine, &hello());

    let sent = sent(&mut machine);
    assert!(matches!(sent.last(), Some(ToSuccessor::Abort { .. })), "{sent:?}");
    assert!(matches!(
        outcome(&mut machine),
        Some(Outcome::Failed { phase: Phase::Transfer, cause: Cause::CalledOff { .. } })
    ));
}

#[test]
fn ten_thousand_long_claims_fit_their_frames() {
    let names: Vec<_> = (0..10_000).map(|n| name(&format!("{}{n}", "\"".repeat(200)))).collect();
    let mut machine = successor_in(Stage::Initialise);

    machine.ready(names.clone(), Time::ZERO);

    let frames: Vec<_> = std::iter::from_fn(|| machine.poll_transmit()).collect();
    assert!(frames.iter().all(|transmit| transmit.frame.len() <= MAX_FRAME_BYTES));
    let claimed: Vec<_> = frames
        .iter()
        .filter_map(|transmit| match decode(&transmit.frame).unwrap() {
            ToPredecessor::Claim { names } => Some(names),
            other => {
                assert_eq!(other, ToPredecessor::Ready {});
                None
            }
        })
        .collect();
    assert_eq!(claimed.concat(), names);
}

#[test]
fn texts_that_json_escapes_fit_their_frames() {
    let text = "\u{1}".repeat(2 * MAX_TEXT_BYTES);
    let mut machine = successor_in(Stage::Initialise);
    machine.progress(text.clone(), None);
    machine.refuse(text.clone());
    assert_eq!(replied(&mut machine).len(), 1, "who refuses has no progress to tell");

    let mut machine = predecessor_in(Phase::Commit);
    machine.abort(text, Time::ZERO);
    assert_eq!(sent(&mut machine).len(), 1);
}

/// Lets a predecessor hand over the items to a successor; returns the items of each frame.
fn transfer(items: Vec<Item>) -> Vec<Vec<Item>> {
    let inventory = Inventory { items, states: 0, stderr: false };
    let mut predecessor = Predecessor::new(predecessor_config(None), inventory, Time::ZERO);
    let mut successor = successor_in(Stage::Hello);
    tell(&mut predecessor, &hello());
    let mut batches = Vec::new();
    let mut next_slot = 0;
    while let Some(Transmit { frame, slots }) = predecessor.poll_transmit() {
        assert!(frame.len() <= MAX_FRAME_BYTES, "{} bytes", frame.len());
        assert!(slots.len() <= MAX_FDS_PER_FRAME);
        for slot in &slots {
            assert_eq!(*slot, Slot::Item(next_slot));
            next_slot += 1;
        }
        let received = Received { descriptors: slots.len(), truncated: false };
        successor.handle_frame(&frame, received, Time::ZERO);
        for event in noted(&mut successor) {
            match event {
                SuccessorEvent::TakeDescriptors { items } => batches.push(items),
                SuccessorEvent::Welcomed { .. } | SuccessorEvent::Adopted => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        for message in replied(&mut successor) {
            tell(&mut predecessor, &message);
        }
    }
    assert_eq!(predecessor.phase(), Phase::Initialise);
    batches
}
