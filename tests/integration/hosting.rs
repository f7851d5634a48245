//! The small broker as its users meet it: started, joined, taken over, restarted.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use tempfile::TempDir;

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

/// With and without librdkafka.
#[test]
fn a_reader_up_to_the_end_ends_where_the_last_line_turns_out_to_be_damaged() {
    let on = Kafka::embedded();
    let _host = on.host();
    let options = [
        &["--from", "earliest"][..],
        #[cfg(feature = "librdkafka")]
        &["--last", "3", "--json"],
    ];
    for options in options {
        let (me, peer) = (user("alice"), user("bob"));
        on.send(&me, &peer, "one\ntwo\nthree\n");
        let segment = on.segment(&peer);
        let mut bytes = fs::read(&segment).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&segment, bytes).unwrap();
        let reader = on.program("subscriber", &[&peer, "-e"]).args(options);
        let ended = reader.run().code(0);
        let printed = String::from_utf8_lossy(&ended.stdout);
        let (has_two, has_three) = (printed.contains("two"), printed.contains("three"));
        assert!(has_two && !has_three, "{}", ended.report());
    }
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
    // What each reader misses is no matter of who runs the broker.
    let gone = "up to 3 lines are gone from the topic (offsets 20 to 22): damaged";
    host.wait_for_notice(gone);
    let guest = on.by_address();
    let chat = guest.chat(&peer, &me);
    chat.wait_for(": after");
    chat.has_shown(&["damaged in the broker's log"]);
    let arguments = [&peer, "--from", "earliest", "-e"];
    let reader = guest.program("subscriber", &arguments).run().code(0);
    reader.says(&[gone]).prints(format!("{expected}after\n"));
    host.signal("INT");
    let host = host.wait();
    let said = host.stderr.matches("are damaged, offsets").count();
    assert_eq!(said, 2, "{}", host.report());
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
fn a_program_that_closes_connections_is_not_called_a_kafka() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with this process.
    thread::spawn(move || listener.incoming().for_each(drop));
    let dir = TempDir::new().unwrap();
    Program::ours("publisher", &["alice", "bob", "--data-dir"])
        .arg(dir.path())
        .arg(format!("--embedded={port}"))
        .input("x\n")
        .run()
        .code(1)
        .says(&["closes connections instead of answering"])
        .does_not_say("real Kafka");
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
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|it| it == "log"));
    let newest = segments.max().unwrap();
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

/// Starts programs on a small broker, replaces that by one with another log, and checks that they stop before they show
/// or write a line.
fn check_that_programs_stop_at_another_log(subscribed: &[&str], shown: impl Fn(&str) -> String) {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let other = Kafka::Embedded {
        port: on.port(),
        dir: tempfile::tempdir().unwrap(),
    };
    other.send(&me, &peer, "other\n".repeat(10));
    let host = on.host();
    on.send(&me, &peer, "one\n");
    // Neither the server's address nor a third folder makes them hosts.
    let third = Kafka::Embedded {
        port: on.port(),
        dir: tempfile::tempdir().unwrap(),
    };
    let mut programs = Vec::new();
    for (n, guest) in [on.by_address(), third].into_iter().enumerate() {
        let reader = guest.program(
            "subscriber",
            &[&[&peer, "--from", "earliest"], subscribed].concat(),
        );
        let reader = reader.start();
        reader.wait_for("one");
        let mut writer = guest.program("publisher", &[&me, &peer]).start();
        writer.write(format!("from {n}\n"));
        reader.wait_for(&format!("from {n}"));
        let chat = guest.program("chat", &[&peer, &me]).start();
        // Its first look at the peer.
        chat.wait_for_notice("has not opened a chat");
        programs.push((guest, reader, writer, chat));
    }
    host.signal("KILL");
    host.wait();
    let _other_host = other.host();
    for (_guest, reader, mut writer, chat) in programs {
        let reader = reader
            .wait()
            .code(1)
            .says(&["another log is served there now"]);
        let lines = String::from_utf8(reader.stdout).unwrap();
        assert!(!lines.contains("other"), "{lines}");
        assert!(lines.starts_with(&shown("one")), "{lines}");
        let chat = chat.wait().code(1);
        let chat = chat.says(&["another log is served there now"]);
        chat.does_not_say("other\n");
        // It may have stopped at its last line, if that was not acknowledged yet.
        writer.try_write("three\n");
        writer.wait().code(1).says(&[
            "another log is served there now",
            "start this program again",
        ]);
    }
    assert_eq!(other.log(&peer), "other\n".repeat(10));
}

#[test]
fn programs_stop_before_they_show_or_write_a_line_of_another_log() {
    check_that_programs_stop_at_another_log(&[], |line| format!("{line}\n"));
}

#[test]
#[cfg(feature = "librdkafka")]
fn a_reader_in_full_stops_before_it_shows_a_line_of_another_log() {
    check_that_programs_stop_at_another_log(&["--time"], |_| String::new());
}

#[test]
fn where_no_topic_can_be_created_the_programs_and_the_host_say_so() {
    let on = Kafka::embedded();
    for n in 0..2000 {
        fs::create_dir(on.dir().join(format!("user{n}-0"))).unwrap();
    }
    let host = on.program("subscriber", &["user0"]).start();
    host.wait_for_notice("small broker of its own");
    for program in ["publisher", "chat"] {
        let guest = on.program(program, &["user1", "carol"]).input("x\n");
        let guest = guest
            .run()
            .code(1)
            .says(&["'carol'", "could not create it"]);
        guest.does_not_say("kafka-topics");
    }
    #[cfg(feature = "librdkafka")]
    on.by_address()
        .program("subscriber", &["carol", "--json"])
        .run()
        .code(1)
        .says(&["topic carol", "as many topics as it may have"])
        .does_not_say("kafka-topics");
    host.wait_for_notice("There are 2000 topics");
}
