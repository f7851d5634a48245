//! Our programs with other clients: the tutorial's scripts, kcat, kafka-python.

use crate::support::{Kafka, Program, is_kafka_4, setting, user};

/// A script for kafka-python: the tutorial's version, or today's on Kafka 4, which refuses that one.
pub(crate) fn python(script: &str, arguments: &[&str], on: &Kafka) -> Program {
    let is_new = matches!(on, Kafka::Real(_)) && is_kafka_4();
    let python = match is_new {
        true => "KAFKA_CHAT_TEST_PYTHON_NEW",
        false => "KAFKA_CHAT_TEST_PYTHON",
    };
    python_of(python, script, arguments, on)
}

/// A script for the Python that this setting names.
pub(crate) fn python_of(python: &str, script: &str, arguments: &[&str], on: &Kafka) -> Program {
    let python = setting(python);
    let script = format!("{}/tests/python/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut all = vec!["-u", &script];
    all.extend(arguments);
    Program::other(python, &all)
        .env("KAFKA_BOOTSTRAP_SERVERS", on.servers())
        .env("PYTHONIOENCODING", "utf-8")
}

/// Creates a topic, and waits until all brokers know it: kafka-python loses what it sends before.
fn create_topic(on: &Kafka, topic: &str) {
    if let Kafka::Real(_) = on {
        crate::kafka::cluster(&["topic", topic]);
    }
}

pub(crate) fn the_tutorials_publisher_reaches_our_subscriber(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    create_topic(on, &peer);
    let subscriber = on.reader(&peer);
    let mut publisher = python("publisher.py", &[], on).start();
    publisher.write(format!("{me}\n{peer}\nxin chào\n"));
    subscriber.wait_for("xin chào\n");
    publisher.write("second\n");
    subscriber.wait_for("xin chào\nsecond\n");
    publisher.close();
    publisher.wait().code(0);
}

pub(crate) fn our_publisher_reaches_the_tutorials_subscriber(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    let mut subscriber = python("subscriber.py", &[], on).start();
    subscriber.write(format!("{peer}\n"));
    subscriber.wait_for_notice("ready");
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    publisher.write("xin chào\n");
    subscriber.wait_for("xin chào\n");
    publisher.write("second\n");
    subscriber.wait_for("xin chào\nsecond\n");
}

pub(crate) fn our_chat_talks_with_the_tutorials_one_way_scripts(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    create_topic(on, &me);
    let mut subscriber = python("subscriber.py", &[], on).start();
    subscriber.write(format!("{peer}\n"));
    subscriber.wait_for_notice("ready");
    let mut chat = on.program("chat", &[&me, &peer, "--unsigned"]).start();
    chat.write("to you\n");
    subscriber.wait_for("to you\n");
    let mut publisher = python("publisher.py", &[], on).start();
    publisher.write(format!("{peer}\n{me}\nto me\n"));
    chat.wait_for("to me\n");
    chat.close();
    chat.wait().code(0);
}

pub(crate) fn our_chat_talks_with_the_tutorials_chat_under_its_option(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    create_topic(on, &peer);
    let mut theirs = python("chat.py", &[], on).start();
    theirs.write(format!("{peer}\n{me}\n"));
    theirs.wait_for_notice("ready");
    let mut ours = on.program("chat", &[&me, &peer, "--tutorial"]).start();
    ours.write("hello\n");
    theirs.wait_for("hello\n");
    theirs.write("hello yourself\n");
    ours.wait_for("hello yourself\n");
    ours.close();
    ours.wait().code(0);
}

pub(crate) fn kcat_reads_our_lines_and_we_read_its(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    let servers = on.servers();
    let kcat = |arguments: &[&str]| {
        let mut all = vec!["-b", &servers, "-t", &peer];
        all.extend(arguments);
        Program::other("kcat", &all)
    };
    let lines: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
    kcat(&["-P", "-k", "carol"])
        .input(lines.clone())
        .run()
        .code(0);
    assert_eq!(on.log(&peer), lines);
    on.send(&me, &peer, "from us\n");
    kcat(&["-C", "-e", "-q", "-f", "%k: %s\n", "-o", "10000"])
        .run()
        .code(0)
        .prints(format!("{me}: from us\n"));
    kcat(&["-L"]).run().code(0);
}
