//! Console chat over Apache Kafka: what the programs `publisher`, `subscriber` and `chat` share.
//!
//! # Modules
//!
//! From what is typed to what is on a disk:
//!
//! | module | knows | does not know |
//! |---|---|---|
//! | [`cli`] | the command line, the two questions | what the programs do |
//! | [`time`] | times, as they are typed and shown | whose they are |
//! | [`name`] | which names a user, and so a topic, can have | which users there are |
//! | [`lines`] | input of any bytes, line by line | what becomes of a line |
//! | [`delivery`] | which lines are in flight, delivered or failed | what is in them |
//! | [`progress`] | how much of its input a publisher has read | whether it was delivered |
//! | [`reading`] | what `subscriber` is asked to read and to print | how that is done |
//! | [`last`] | which messages are the last of a topic | how they are printed |
//! | [`opener`] | which lines of a topic are opened, and what lies before them | how they are sealed |
//! | [`read_limit`] | how much a subscriber reads and prints | where it comes from |
//! | [`seal`] | how lines are sealed and opened, and which are shown | where they are, where the secret is |
//! | [`chat`] | who is shown, what is unread, whether the peer is here | clients, terminals |
//! | [`terminal`] | the line editor, the screen, what is safe to show | Kafka, who may be shown |
//! | [`start`] | how a program starts where its address space is limited | which program it is |
//! | [`ending`] | how a program ends: results, signals, closed output | why |
//! | [`client`] | Kafka, as one small interface to two clients | what a line means |
//! | [`host`] | who runs the small broker, and who takes over | what a broker does |
//! | [`account`] | whose a TCP socket of this machine is | who may do what with it |
//! | [`broker`] | the small broker: log, committed offsets, sockets | everything above |
//! | [`wire`] | the bytes of Kafka's protocol, in both directions | sockets, logs |
//! | [`error`] | failures as sentences, and their exit codes | what failed |
//!
//! To read the code in an evening, start with `src/bin/publisher.rs` and [`delivery`], then [`client`] with one of
//! its clients, then `src/bin/chat.rs` and [`chat`], and the [`broker`] last.
//!
//! # Threads
//!
//! State has one owner, and other threads send it messages. A thread ends when its channel closes or with the
//! process. Only the owner of a program's state ends the program.
//!
//! | thread | program | owned by | waits for | ends |
//! |---|---|---|---|---|
//! | main | all | - | input; in `subscriber`, whose owner it is, the end | with the input, then waits for the owner |
//! | `publisher` | `publisher` | - (it is the owner) | reports, signals | with the program |
//! | `chat` | `chat` | - (it is the owner) | [everything](chat) that can happen | with the program |
//! | `consumer` | `subscriber`, `chat` | main; the chat's owner | records; a request to poll | when asked to; when its channel closes |
//! | `history` | `chat` | - | the last lines of one topic | with the answer |
//! | `connect` | `chat`, while the peer is asked for | main | a connection | with it |
//! | `writers` | `chat`, while the peer is asked for | main | the last lines, and positions | with the answer |
//! | `positions` | `chat` | the chat's owner | tasks, or what its schedule says is due | when its channel closes |
//! | `screen` | `chat` | the screen | a request to wake the editor; without one, what is to be printed | when the screen and the editor are dropped |
//! | `signals` | all | the owner | signals | with the program |
//! | `prompt` | all, with `--secret` | main | the answer | with it, or with the program |
//! | `output` | `subscriber`, `chat` | the owner | closed output | with the program |
//! | `producer` | `publisher`, `chat` | the producer | lines; acknowledgements | when the producer is dropped |
//! | `settings` | `publisher`, `chat`, on a real Kafka | the producer | what is set on the topic | with the answer |
//! | `stall` | `publisher`, `chat`, on a real Kafka | the producer | why lines are not acknowledged | with the answer |
//! | `crate kafka` | all, on the small broker | its connection | calls | when the connection is dropped and its last call returns |
//! | `probe` | all | one probe of a server | an answer | with that, or its deadline |
//! | `resolver` | all | one look-up of an address | the system's resolver | with its answer |
//! | `broker` | the host of the small broker | the broker | connections | when the broker is stopped |
//! | `broker connection` | the host | the broker | requests of one client | with the connection |
//!
//! librdkafka has threads of its own, one for each client and each broker it is connected to; the progress bar
//! has one that draws.

pub mod account;
pub mod broker;
pub mod chat;
pub mod cli;
pub mod client;
pub mod delivery;
pub mod ending;
pub mod error;
pub mod host;
pub mod last;
pub mod lines;
pub mod name;
pub mod opener;
pub mod progress;
pub mod read_limit;
pub mod reading;
pub mod seal;
pub mod start;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod time;
pub mod wire;
