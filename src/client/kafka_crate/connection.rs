//! One connection: a `KafkaClient` on its own thread, and calls to it with deadlines.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kafka::client::{GroupOffsetStorage, KafkaClient};
use kafka::error::Error as KafkaError;

use super::errors::CallError;
use crate::broker::identity;
use crate::client::sentences::seconds;
use crate::ending::spawn;

/// The most threads of one cluster. A chat has four connections; the others may be abandoned ones,
/// each of which keeps its thread and its socket until crate `kafka` gives up, after 120 seconds.
const MAX_THREADS: usize = 12;

/// Longer than any connection is idle.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

type Job = Box<dyn FnOnce(&mut KafkaClient) + Send>;

/// A `KafkaClient` on its own thread, which ends when this is dropped and its last call returns.
pub(super) struct Connection {
    jobs: mpsc::Sender<Job>,
}

impl Connection {
    /// Starts the thread, unless [`MAX_THREADS`] have a clone of `threads`; the first call connects.
    pub(super) fn open(server: String, threads: &Arc<()>) -> Result<Connection, CallError> {
        let (jobs, rx) = mpsc::channel::<Job>();
        let permit = Arc::clone(threads);
        if Arc::strong_count(threads) > MAX_THREADS + 1 {
            let why = "no answer to any of the earlier connections";
            return Err(CallError::connection(why));
        }
        spawn("crate kafka", move || {
            let mut client = KafkaClient::new(vec![server]);
            client.set_client_id(identity::client_id().into());
            client.set_fetch_min_bytes(1);
            // The crate would connect again by itself after 9 minutes, to the broker that serves by then. `topic_client` does,
            // and looks first.
            client.set_connection_idle_timeout(A_DAY);
            // A broker checks what is appended, and TCP what travels. librdkafka doesn't check it
            // again either, and here it would take longer than all else that reading does.
            client.set_fetch_crc_validation(false);
            client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
            for job in rx {
                job(&mut client);
            }
            drop(permit);
        })
        .map_err(CallError::Fatal)?;
        Ok(Connection { jobs })
    }

    /// Starts to run `work` on the client, which may take at most `limit`.
    pub(super) fn start<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut KafkaClient) -> Result<T, KafkaError> + Send + 'static,
    ) -> Call<T> {
        let (tx, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |client| {
            let _ = tx.send(work(client));
        });
        // A failed send drops `tx`, which the wait for the result sees.
        let _ = self.jobs.send(job);
        Call {
            result,
            limit,
            deadline: Instant::now() + limit,
        }
    }
}

/// A call in progress.
pub(super) struct Call<T> {
    result: Receiver<Result<T, KafkaError>>,
    limit: Duration,
    deadline: Instant,
}

impl<T> Call<T> {
    /// Waits for the result at most this long; `None` if it may still come.
    pub(super) fn wait(&self, wait: Duration) -> Option<Result<T, CallError>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.result.recv_timeout(wait.min(left)) {
            Ok(result) => Some(result.map_err(CallError::from)),
            Err(RecvTimeoutError::Timeout) => {
                (Instant::now() >= self.deadline).then(|| Err(self.timed_out()))
            }
            // The thread panicked over the answer.
            Err(RecvTimeoutError::Disconnected) => Some(Err(CallError::no_sense())),
        }
    }

    /// Waits for the result to the end.
    pub(super) fn result(self) -> Result<T, CallError> {
        let result = self.wait(self.limit);
        result.unwrap_or_else(|| Err(self.timed_out()))
    }

    fn timed_out(&self) -> CallError {
        CallError::connection(format!("no answer within {}", seconds(self.limit)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::testing::wait_until;

    #[test]
    fn a_broker_that_never_answers_costs_a_bounded_number_of_threads() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = silent.local_addr().unwrap().to_string();
        let threads = Arc::default();
        let open = || Connection::open(server.clone(), &threads);
        let mut abandoned = 0;
        for _ in 0..3 * MAX_THREADS {
            if let Ok(connection) = open() {
                let limit = Duration::from_millis(5);
                let call = connection.start(limit, |client| client.load_metadata_all());
                let error = call.result().unwrap_err();
                assert!(matches!(error, CallError::Connection { .. }), "{error:?}");
                abandoned += 1;
            }
        }
        assert_eq!(abandoned, MAX_THREADS);
        assert!(matches!(open(), Err(CallError::Connection { .. })));

        // Their sockets are closed, so the threads end, and there is room again.
        drop(silent);
        wait_until("the threads never end", || open().is_ok());
    }

    #[test]
    fn a_call_that_times_out_says_how_long_it_was_given() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = silent.local_addr().unwrap().to_string();
        let connection = Connection::open(server, &Arc::default());
        let limit = Duration::from_millis(300);
        let error = connection.and_then(|it| {
            let call = it.start(limit, |client| client.load_metadata_all());
            call.result()
        });
        let CallError::Connection { why, .. } = error.unwrap_err() else {
            panic!("not a connection error");
        };
        assert_eq!(why, "no answer within 0.3 seconds");
    }
}
