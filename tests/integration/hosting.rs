//! The small broker as its users meet it: started, joined, taken over, restarted.

use std::fs::{self, OpenOptions};
use std::path::Path;

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
fn a_torn_last_record_is_set_aside_and_reported_once() {
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
    let read = || {
        let arguments = [&peer, "--from", "earliest", "-e"];
        on.program("subscriber", &arguments).run().code(0)
    };
    let aside = segment.with_extension("torn");
    read().prints("one\ntwo\n").says(&[&format!(
        "1 line of topic {peer} is incomplete, offset 2: {}",
        aside.display()
    )]);
    let again = read().prints("one\ntwo\n");
    assert!(!again.stderr.contains("incomplete"), "{}", again.report());
    on.send(&me, &peer, "four\n");
    assert_eq!(on.log(&peer), "one\ntwo\nfour\n");
}

#[test]
fn damage_is_reported_by_the_host_and_both_sides_go_on() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let lines: Vec<_> = (0..30).map(|n| format!("line {n}\n")).collect();
    on.send(&me, &peer, lines.concat());
    let segment = on.segment(&peer);
    let mut bytes = fs::read(&segment).unwrap();
    for n in 20..23 {
        let line = format!("line {n}");
        let found = bytes
            .windows(line.len())
            .position(|it| it == line.as_bytes());
        bytes[found.unwrap()] ^= 1;
    }
    // As long as three messages at most.
    bytes.extend([0xff; 100]);
    fs::write(&segment, bytes).unwrap();
    let expected: Vec<_> = (0..30).filter(|n| !(20..23).contains(n)).collect();
    let expected: String = expected.iter().map(|n| lines[*n].as_str()).collect();

    let host = on.reader(&peer);
    host.wait_for(&expected);
    host.wait_for_notice(&format!(
        "3 lines of topic {peer} are damaged, offsets 20-22: {}",
        segment.display()
    ));
    host.wait_for_notice(&format!(
        "are damaged, offsets 30-32: {}",
        segment.display()
    ));
    on.send(&me, &peer, "after\n");
    host.wait_for(&format!("{expected}after\n"));
    let guest = on.by_address();
    assert_eq!(guest.log(&peer), format!("{expected}after\n"));
    host.signal("INT");
    let host = host.wait();
    assert_eq!(
        host.stderr.matches("damaged").count(),
        2,
        "{}",
        host.report()
    );
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

#[test]
fn the_cause_is_named_where_no_broker_can_start() {
    let on = Kafka::embedded();
    // The shell starts the program in its place, with a lower limit.
    let script = r#"ulimit -n 20; exec "$0" "$@""#;
    for program in ["publisher", "subscriber", "chat"] {
        let names: &[&str] = if program == "subscriber" {
            &["bob"]
        } else {
            &["alice", "bob"]
        };
        let command = on.program(program, names).into_command();
        Program::other("sh", &["-c", script])
            .arg(command.get_program())
            .args(command.get_args())
            .input("x\n")
            .run()
            .code(1)
            .says(&["too few files", "ulimit -n"])
            .does_not_say("TLS");
    }
    let file = on.dir().join("file");
    fs::write(&file, "").unwrap();
    for folder in [file.clone(), file.join("log")] {
        Program::ours("publisher", &["alice", "bob", "--data-dir"])
            .arg(&folder)
            .arg(format!("--embedded={}", free_port()))
            .input("x\n")
            .run()
            .code(1)
            .says(&[&format!("{} is not a folder", file.display()), "--data-dir"])
            .does_not_say("os error");
    }
}

#[test]
fn a_segment_that_is_a_folder_is_named_by_the_host() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "one\n");
    let segment = on.segment(&peer);
    let replace = |segment: &Path| {
        fs::remove_file(segment).unwrap();
        fs::create_dir(segment).unwrap();
    };
    replace(&segment);
    let host = on.host();
    on.send(&me, &peer, "two\n");
    host.wait_for_notice(&format!("{} is a folder", segment.display()));
    assert_eq!(on.log(&peer), "two\n");

    // Under the running broker, too.
    let folder = segment.parent().unwrap();
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let newest = files.max().unwrap();
    replace(&newest);
    let arguments = [&me, &peer, "--delivery-timeout", "5"];
    let writer = on.program("publisher", &arguments).input("three\n");
    writer
        .run()
        .code(1)
        .says(&["the program that runs it says why"]);
    host.wait_for_notice(&format!("cannot write {}: ", newest.display()));
}

#[test]
#[cfg(feature = "librdkafka")]
fn a_writer_with_properties_is_refused_by_a_sentence() {
    let on = Kafka::embedded();
    let _host = on.host();
    let on = on.by_address();
    for program in ["publisher", "chat"] {
        let writer = on.program(program, &["alice", "bob", "-X", "client.id=x"]);
        let refused = writer.input("x\n").run().code(2);
        let expected = "-X and -F cannot be used to write to the small broker: leave them out\n";
        assert_eq!(refused.stderr, format!("{program}: {expected}"));
    }
    let arguments = ["bob", "-X", "client.id=x", "--from", "earliest", "-e"];
    on.program("subscriber", &arguments)
        .run()
        .code(0)
        .prints("");
}
