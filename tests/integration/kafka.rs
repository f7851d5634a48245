//! The same on a real Kafka, and what only a real one can show.

use crate::one_way;
use crate::support::Kafka;

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
}
