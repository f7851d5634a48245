//! What a build without the feature `librdkafka` does not serve.

use crate::support::{Kafka, Program, is_kafka_4, user};

#[test]
#[ignore = "needs a real Kafka, of version 4 or of several brokers"]
fn a_kafka_for_librdkafka_is_recognized_and_the_error_says_what_to_build() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    let says = match is_kafka_4() {
        true => "version 4 or later",
        false => "several brokers",
    };
    if !is_kafka_4() {
        for topic in [&me, &peer] {
            crate::kafka::cluster(&["topic", topic, "6"]);
        }
    }
    for (name, arguments) in [
        ("publisher", &[me.as_str(), &peer][..]),
        ("subscriber", &[&peer]),
        ("chat", &[&me, &peer]),
    ] {
        let program = on.program(name, arguments).input("hello\n");
        let says = [says, "librdkafka", "--no-default-features"];
        program.run().code(1).says(&says);
    }
}

#[test]
fn a_property_is_a_usage_error_that_says_what_to_build() {
    Program::ours("subscriber", &["bob", "-X", "check.crcs=true"])
        .run()
        .code(2)
        .says(&["-X and -F need", "librdkafka"]);
}
