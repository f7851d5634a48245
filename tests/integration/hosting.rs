//! The embedded broker as its users meet it: started, joined, taken over, started again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use crate::support::{Kafka, PATIENCE, Program, user};

/// All that was ever sent to `peer`, as a new program reads it.
fn log_of(on: &Kafka, peer: &str) -> Vec<u8> {
    on.program("subscriber", &[peer, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .stdout
}

fn send(on: &Kafka, me: &str, peer: &str, lines: &str) {
    on.program("publisher", &[me, peer])
        .input(lines)
        .run()
        .code(0);
}

#[test]
fn the_first_program_starts_it_and_says_so_once() {
    let on = Kafka::embedded();
    let host = on.program("subscriber", &["bob"]).start();
    host.wait_for_notice("small broker of its own");
    host.wait_for_notice(&on.servers());
    host.wait_for_notice(&on.dir().display().to_string());
    let guest = on
        .program("publisher", &["alice", "bob"])
        .input("x\n")
        .run();
    let guest = guest.code(0);
    assert_eq!(guest.stderr, "", "whoever joins has nothing to be told");
}

#[test]
fn the_log_outlives_every_program() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    send(&on, &me, &peer, "one\ntwo\n");
    send(&on, &me, &peer, "three\n");
    assert_eq!(log_of(&on, &peer), b"one\ntwo\nthree\n");
}

#[test]
fn others_go_on_when_the_host_is_killed() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let host = on.program("subscriber", &[&user("host")]).start();
    host.wait_for_notice("small broker");
    let reader = on
        .program("subscriber", &[&peer, "--from", "earliest"])
        .start();
    let mut writer = on.program("publisher", &[&me, &peer]).start();
    writer.write("before\n");
    reader.wait_for("before\n");
    host.signal("KILL");
    host.wait();
    writer.write("after\n");
    reader.wait_for("before\nafter\n");
    writer.close();
    writer.wait().code(0);
    assert_eq!(log_of(&on, &peer), b"before\nafter\n");
}

#[test]
fn no_acknowledged_line_is_missing_after_many_hosts_were_killed() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let mut writer = on.program("publisher", &[&me, &peer]).start();
    let mut expected = String::new();
    for round in 0..8 {
        // Killed as readers or as hosts: whoever binds first after a death hosts next.
        let host = on
            .program("subscriber", &[&peer, "--from", "earliest"])
            .start();
        for n in 0..500 {
            let line = format!("{round}-{n}\n");
            writer.write(&line);
            expected.push_str(&line);
        }
        host.wait_for(&format!("{round}-250\n"));
        host.signal("KILL");
        host.wait();
    }
    writer.close();
    writer.wait().code(0);
    assert_eq!(String::from_utf8(log_of(&on, &peer)).unwrap(), expected);
}

#[test]
fn a_torn_last_record_is_cut_and_not_fatal() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    send(&on, &me, &peer, "one\ntwo\nthree\n");
    let segment = segment(&on, &peer);
    let length = fs::metadata(&segment).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(length - 2)
        .unwrap();
    assert_eq!(log_of(&on, &peer), b"one\ntwo\n");
    send(&on, &me, &peer, "four\n");
    assert_eq!(log_of(&on, &peer), b"one\ntwo\nfour\n");
}

#[test]
fn garbage_behind_the_last_record_is_cut() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    send(&on, &me, &peer, "one\n");
    OpenOptions::new()
        .append(true)
        .open(segment(&on, &peer))
        .unwrap()
        .write_all(&[0xff; 100])
        .unwrap();
    send(&on, &me, &peer, "two\n");
    assert_eq!(log_of(&on, &peer), b"one\ntwo\n");
}

/// The one segment of a topic's log.
fn segment(on: &Kafka, topic: &str) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![on.dir().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "log")
                && path.display().to_string().contains(topic)
            {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn two_that_start_at_once_share_one_broker() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let readers: Vec<_> = (0..6)
        .map(|_| {
            on.program("subscriber", &[&peer, "--from", "earliest", "-n", "1"])
                .start()
        })
        .collect();
    send(&on, &me, &peer, "hello\n");
    for reader in readers {
        reader.wait_within(PATIENCE).code(0).prints("hello\n");
    }
}

#[test]
fn a_second_broker_on_the_same_folder_is_refused() {
    let on = Kafka::embedded();
    let host = on.program("subscriber", &["bob"]).start();
    host.wait_for_notice("small broker");
    let port = crate::support::free_port().to_string();
    Program::ours("subscriber", &["bob", &format!("--embedded={port}")])
        .env("KAFKA_CHAT_DATA_DIR", on.dir())
        .run()
        .code(1)
        .says(&[&on.dir().display().to_string(), &on.servers(), "--data-dir"]);
}

#[test]
fn the_folder_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let on = Kafka::embedded();
    let inner = on.dir().join("new");
    Program::ours("publisher", &["a", "b", "--data-dir"])
        .arg(&inner)
        .arg(format!("--embedded={}", crate::support::free_port()))
        .input("x\n")
        .run()
        .code(0);
    let mode = fs::metadata(inner).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
