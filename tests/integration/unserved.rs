//! A build without the feature `librdkafka` meets what only that serves.

use crate::support::{Kafka, Program};

#[test]
#[ignore = "needs a real Kafka, of version 4"]
fn kafka_4_is_recognized_and_the_error_says_what_to_build() {
    let on = Kafka::real();
    for (name, arguments) in [
        ("publisher", &["alice", "bob"][..]),
        ("subscriber", &["bob"]),
        ("chat", &["alice", "bob"]),
    ] {
        let says = ["version 4 or later", "librdkafka", "--no-default-features"];
        let program = on.program(name, arguments).input("hello\n");
        program.run().code(1).says(&[&on.servers()]).says(&says);
    }
}

#[test]
fn a_property_is_a_usage_error_that_says_what_to_build() {
    Program::ours("subscriber", &["bob", "-X", "check.crcs=true"])
        .run()
        .code(2)
        .says(&["-X and -F need", "librdkafka"]);
}
