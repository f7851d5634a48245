//! The small broker as its users meet it: started, joined, taken over, restarted.

use std::fs::{self, OpenOptions};
use std::io::Write;

use crate::support::{Kafka, Program, free_port, user};

#[test]
fn only_the_program_that_starts_the_broker_says_so() {
    let on = Kafka::embedded();
    let host = on.program("subscriber", &["bob"]).start();
    host.wait_for_notice("small broker of its own");
    host.wait_for_notice(&on.servers());
    host.wait_for_notice(&on.dir().display().to_string());
    let guest = on.program("publisher", &["alice", "bob"]).input("x\n");
    let guest = guest.run().code(0);
    assert_eq!(guest.stderr, "", "{}", guest.report());
}

#[test]
fn the_log_outlives_every_program() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "one\ntwo\n");
    on.send(&me, &peer, "three\n");
    assert_eq!(on.log(&peer), "one\ntwo\nthree\n");
}

#[test]
fn others_take_over_when_the_host_is_killed() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let host = on.host();
    let reader = on.reader(&peer);
    let mut writer = on.program("publisher", &[&me, &peer]).start();
    writer.write("before\n");
    reader.wait_for("before\n");
    host.signal("KILL");
    host.wait();
    writer.write("after\n");
    reader.wait_for("before\nafter\n");
    writer.close();
    writer.wait().code(0);
    assert_eq!(on.log(&peer), "before\nafter\n");
}

#[test]
fn no_line_is_missing_after_eight_hosts_were_killed() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let start_host = || {
        let host = on.reader(&peer);
        host.wait_for_notice("small broker of its own");
        host
    };
    let mut host = start_host();
    let clients = on.by_address();
    let mut writer = clients.program("publisher", &[&me, &peer]).start();
    let mut expected = String::new();
    for round in 0..8 {
        for n in 0..500 {
            let line = format!("{round}-{n}\n");
            writer.write(&line);
            expected.push_str(&line);
        }
        host.wait_for(&format!("{round}-250\n"));
        host.signal("KILL");
        host.wait();
        host = start_host();
    }
    writer.close();
    writer.wait().code(0);
    assert_eq!(on.log(&peer), expected);
}

#[test]
fn a_torn_last_record_is_cut_off() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "one\ntwo\nthree\n");
    let segment = on.segment(&peer);
    let length = fs::metadata(&segment).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(length - 2)
        .unwrap();
    assert_eq!(on.log(&peer), "one\ntwo\n");
    on.send(&me, &peer, "four\n");
    assert_eq!(on.log(&peer), "one\ntwo\nfour\n");
}

#[test]
fn garbage_after_the_last_record_is_cut_off() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "one\n");
    OpenOptions::new()
        .append(true)
        .open(on.segment(&peer))
        .unwrap()
        .write_all(&[0xff; 100])
        .unwrap();
    on.send(&me, &peer, "two\n");
    assert_eq!(on.log(&peer), "one\ntwo\n");
}

#[test]
fn programs_that_start_at_once_share_one_broker() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let arguments = [&peer, "--from", "earliest", "-n", "1"];
    let start = |_| on.program("subscriber", &arguments).start();
    let readers: Vec<_> = (0..6).map(start).collect();
    on.send(&me, &peer, "hello\n");
    for reader in readers {
        reader.wait().code(0).prints("hello\n");
    }
}

#[test]
fn a_second_broker_on_the_same_folder_is_refused() {
    let on = Kafka::embedded();
    let _host = on.host();
    let port = free_port();
    Program::ours("subscriber", &["bob", &format!("--embedded={port}")])
        .env("KAFKA_CHAT_DATA_DIR", on.dir())
        .run()
        .code(1)
        .says(&[&on.dir().display().to_string(), &on.servers(), "--data-dir"]);
}

#[test]
fn only_its_owner_can_open_the_logs_folder() {
    use std::os::unix::fs::PermissionsExt;
    let on = Kafka::embedded();
    let inner = on.dir().join("new");
    Program::ours("publisher", &["a", "b", "--data-dir"])
        .arg(&inner)
        .arg(format!("--embedded={}", free_port()))
        .input("x\n")
        .run()
        .code(0);
    let mode = fs::metadata(inner).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
