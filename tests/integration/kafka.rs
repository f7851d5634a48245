//! The same on a real Kafka, and what only a real one can show.

mod clusters;
mod matrix;

use crate::support::{Kafka, Program, is_kafka_4, setting, user};
use crate::{chatting, one_way, others};

macro_rules! on_kafka {
    ($($module:ident::$name:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            #[ignore = "needs a real Kafka"]
            fn $name() {
                $module::$name(&Kafka::real() $(, $argument)*);
            }
        )*
    };
}

on_kafka! {
    one_way::a_pipe_comes_out_as_it_went_in(100_000);
    one_way::any_bytes_but_a_line_ending_are_a_line();
    one_way::the_last_line_needs_no_ending();
    one_way::random_bytes_come_out_byte_for_byte(1_000_000);
    one_way::one_line_typed_leaves_at_once();
    one_way::names_left_out_are_asked_for();
    one_way::latest_shows_only_what_comes_later();
    one_way::lines_too_long_are_named_and_the_others_go_on();
    one_way::a_line_too_long_only_with_its_key_is_named_and_the_others_go_on();
    others::the_tutorials_publisher_reaches_our_subscriber();
    others::our_publisher_reaches_the_tutorials_subscriber();
    others::our_chat_talks_with_the_tutorials_one_way_scripts();
    others::chat_talks_with_the_tutorials_chat_under_its_option();
    others::kcat_writes_and_reads();
    chatting::lines_go_both_ways_at_once();
    chatting::an_end_typed_ahead_is_an_end_behind_the_last_line(5);
    chatting::what_waited_is_shown_once_and_what_waits_is_told();
    chatting::a_third_user_gets_one_notice_and_a_chat_of_their_own();
}

/// One of our clients.
#[derive(Debug, Clone, Copy)]
enum Ours {
    /// The one that the programs choose by themselves.
    Chosen,
    /// librdkafka, where they would choose the other.
    Librdkafka,
}

impl Ours {
    /// All that the Kafka of this run serves: on Kafka 4 it is librdkafka that is chosen.
    fn all() -> Vec<Ours> {
        match cfg!(feature = "librdkafka") && !is_kafka_4() {
            true => vec![Ours::Chosen, Ours::Librdkafka],
            false => vec![Ours::Chosen],
        }
    }

    /// One of our programs that talks by this client.
    fn program(self, on: &Kafka, name: &str, arguments: &[&str]) -> Program {
        let program = on.program(name, arguments);
        match self {
            Ours::Chosen => program,
            // Any property chooses it.
            Ours::Librdkafka => program.args(["-X", "check.crcs=true"]),
        }
    }
}

/// Asks `tests/cluster` to do something with the cluster of this run.
pub(crate) fn cluster(arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");
    let mut all = arguments.to_vec();
    let dir = setting("KAFKA_CHAT_TEST_DIR");
    all.extend(["--dir", &dir]);
    Program::other(script, &all).run().code(0);
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_topic_with_six_partitions_keeps_each_senders_order_and_is_read_whole() {
    let on = Kafka::real();
    let peer = user("bob");
    cluster(&["topic", &peer, "6"]);
    let senders: Vec<String> = (0..8).map(|n| user(&format!("sender{n}"))).collect();
    for sender in &senders {
        let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
        on.program("publisher", &[sender, &peer])
            .input(lines)
            .run()
            .code(0);
    }
    let all = on
        .program("subscriber", &[&peer, "--from", "earliest", "-e", "-s"])
        .run()
        .code(0);
    let all = String::from_utf8(all.stdout).unwrap();
    assert_eq!(all.lines().count(), 800);
    for sender in &senders {
        let prefix = format!("{sender}: ");
        let theirs: Vec<u32> = all
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(theirs, (0..100).collect::<Vec<_>>(), "{sender}");
    }
}
