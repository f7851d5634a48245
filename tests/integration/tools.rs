//! Other people's programs on the embedded broker.

use crate::others;
use crate::support::Kafka;

macro_rules! on_the_embedded_broker {
    ($needs:literal: $($name:ident;)*) => {
        $(
            #[test]
            #[ignore = $needs]
            fn $name() {
                others::$name(&Kafka::embedded());
            }
        )*
    };
}

on_the_embedded_broker! {
    "needs kafka-python":
    the_tutorials_publisher_reaches_our_subscriber;
    our_publisher_reaches_the_tutorials_subscriber;
    our_chat_talks_with_the_tutorials_one_way_scripts;
    chat_talks_with_the_tutorials_chat_under_its_option;
}

on_the_embedded_broker! {
    "needs kcat":
    kcat_writes_and_reads;
}
