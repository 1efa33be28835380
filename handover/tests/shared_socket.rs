//! A socket that the service was given is not its own to take out of service.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use handover::Handover;

#[test]
fn a_stop_leaves_a_socket_alone_that_somebody_else_has_too() {
    let manager = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = manager.local_addr().unwrap();
    let handover = Handover::builder().start().unwrap();
    let given = manager.try_clone().unwrap();
    let listener: handover::TcpListener = handover.listen("given", given).unwrap();
    let running = handover.ready().unwrap();
    let mut served = TcpStream::connect(address).unwrap();
    listener.accept().unwrap().unwrap().write_all(b"served").unwrap();

    running.handle().stop();
    running.wait().unwrap().drain().unwrap();
    let mut queued = TcpStream::connect(address).unwrap();
    assert!(listener.accept().unwrap().is_none());
    drop(listener);

    let mut answer = String::new();
    served.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served");
    manager.set_nonblocking(false).unwrap();
    manager.accept().unwrap().0.write_all(b"by the manager").unwrap();
    answer.clear();
    queued.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "by the manager");
}
