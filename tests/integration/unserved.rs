//! A build without the feature `librdkafka`, on a Kafka that only librdkafka serves.

use crate::kafka::cluster;
use crate::support::{Kafka, Program, is_kafka_4, user};

#[test]
#[ignore = "needs a Kafka 4, or a Kafka of several brokers"]
fn a_kafka_that_needs_librdkafka_is_one_error_that_names_the_feature() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    let reason = match is_kafka_4() {
        true => "version 4 or later",
        false => "several brokers",
    };
    // Several brokers lead the partitions of each topic, if there are several.
    for topic in [&me, &peer] {
        cluster(&["topic", topic, "6"]);
    }
    for (name, arguments) in [
        ("publisher", &[&*me, &peer][..]),
        ("subscriber", &[&peer]),
        ("chat", &[&me, &peer]),
    ] {
        // Standard input stays open: it is not its end that ends a program.
        let ended = on.program(name, arguments).start().wait().code(1);
        let errors = ended.stderr.matches(&format!("{name}: ")).count();
        assert_eq!(errors, 1, "{}", ended.report());
        ended.says(&[reason, "librdkafka"]);
    }
}

#[test]
fn what_crate_kafka_cannot_tell_is_a_usage_error_and_starts_no_broker() {
    for (program, arguments, named) in [
        ("subscriber", &["bob", "--json"][..], "--json"),
        ("subscriber", &["bob", "--time"], "--time"),
        ("subscriber", &["bob", "--last", "3"], "--last"),
        ("subscriber", &["bob", "--from", "3d"], "--from with a time"),
    ] {
        let on = Kafka::embedded();
        let ended = on.program(program, arguments).run().code(2);
        let sentence = format!("{named} needs a build with the feature librdkafka");
        ended.says(&[&sentence]).does_not_say("small broker");
    }
}

#[test]
fn a_property_is_a_usage_error_that_names_the_feature() {
    Program::ours("subscriber", &["bob", "-X", "check.crcs=true"])
        .run()
        .code(2)
        .says(&["-X or -F needs", "librdkafka"]);
}
