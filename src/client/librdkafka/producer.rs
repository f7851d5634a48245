//! Hands lines to librdkafka, and polls for what became of them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::deliveries::Deliveries;
use super::status::{ClusterStatus, Context};
use super::topic::Request;
use super::{Explain, create};
use crate::client::{DELIVERY_TIMEOUT, MAX_RECORD_BYTES, Producer, Reports};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long the polling thread sleeps while lines are under way, and while none are.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// How long the first line may take before the cluster is asked for metadata; twice as long each
/// time after that.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_millis(4);

/// How often a cluster that is away is asked for metadata.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a line waits before it is tried again while librdkafka's queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

type Base = BaseProducer<Context<Deliveries>>;

/// Connects, and starts the thread that polls for delivery reports.
pub(super) fn start(
    config: &ClientConfig,
    status: Arc<ClusterStatus>,
    sender: &Name,
    topic: &Name,
    reports: Reports,
    explain: &Explain<'_>,
) -> Result<Box<dyn Producer>> {
    let doing = format!("cannot write to topic {topic} at {}", status.servers());
    // A user's own setting may have replaced ours.
    let timeout = match config.get("delivery.timeout.ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        _ => DELIVERY_TIMEOUT,
    };
    let deliveries = Deliveries::new(reports, doing.clone(), timeout);
    let producer: Base = create(config, &status, deliveries)?;
    let request = Request {
        status: &status,
        pause: &|pause| producer.poll(pause),
        doing: &doing,
        topic: topic.as_str(),
    };
    let leaders = request
        .await_leaders(producer.client())
        .map_err(|error| explain(&request, error))?;
    request.reach_leader(producer.client(), &leaders)?;
    status.on_started();

    let producer = Arc::new(producer);
    let (wake, rx) = mpsc::sync_channel(1);
    let is_asleep = Arc::new(AtomicBool::new(false));
    let poller = Poller {
        producer: Arc::clone(&producer),
        topic: topic.to_string(),
        wake: rx,
        is_asleep: Arc::clone(&is_asleep),
    };
    thread::Builder::new()
        .name("producer".into())
        .spawn(move || poller.run())
        .map_err(|why| Error::failed("cannot start a thread to send from", why))?;
    Ok(Box::new(LibrdkafkaProducer {
        producer,
        sender: sender.clone(),
        topic: topic.to_string(),
        is_asleep,
        wake,
    }))
}

struct LibrdkafkaProducer {
    /// Dropped before `wake`, whose end makes the poller drop its own: what librdkafka takes to close
    /// is the poller's time.
    producer: Arc<Base>,
    /// The key of every record.
    sender: Name,
    topic: String,
    /// The poller sleeps for longer than a moment.
    is_asleep: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl Producer for LibrdkafkaProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let context = self.producer.client().context();
        let key = self.sender.as_bytes();
        let bytes = key.len() + value.len();
        let fail = |code| {
            let deliveries = &context.role;
            deliveries.fail(line, value, bytes, code, &context.status);
            deliveries.flush();
        };
        if bytes > MAX_RECORD_BYTES {
            return fail(Code::MessageSizeTooLarge);
        }
        let mut record = BaseRecord::with_opaque_to(&self.topic, line as usize)
            .key(key)
            .payload(value);
        while let Err((error, back)) = self.producer.send(record) {
            match error.rdkafka_error_code() {
                Some(Code::QueueFull) => {
                    record = back;
                    thread::sleep(QUEUE_FULL_PAUSE);
                }
                code => return fail(code.unwrap_or(Code::Fail)),
            }
        }
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            // A full channel has woken it already.
            let _ = self.wake.try_send(());
        }
    }
}

/// Polls for delivery reports on its own thread, until the producer is dropped.
///
/// The crate's own poll with a timeout can't be ended early, and is busy for its last millisecond.
/// So this only ever takes what has arrived, and sleeps in between.
struct Poller {
    producer: Arc<Base>,
    topic: String,
    wake: Receiver<()>,
    is_asleep: Arc<AtomicBool>,
}

impl Poller {
    fn run(self) {
        let Context { status, role } = &**self.producer.client().context();
        let mut has_reported = false;
        let mut last_refresh = Instant::now();
        let mut patience = FIRST_LINE_TIMEOUT;
        loop {
            self.producer.poll(Duration::ZERO);
            let is_news = role.flush();
            has_reported |= is_news;
            if self.sleep(is_news).is_break() {
                return;
            }
            // Without metadata, librdkafka asks for the producer's id again only after half a second.
            let is_stuck = !has_reported
                && self.producer.in_flight_count() > 0
                && last_refresh.elapsed() >= patience;
            let is_due = status.is_away() && last_refresh.elapsed() >= RECONNECT_INTERVAL;
            if is_stuck || is_due {
                last_refresh = Instant::now();
                if is_stuck {
                    patience *= 2;
                }
                let client = self.producer.client();
                let answer = client.fetch_metadata(Some(&self.topic), RECONNECT_INTERVAL / 2);
                if answer.is_ok() {
                    status.on_answer();
                }
            }
        }
    }

    /// Sleeps until the next look is due, or a line is handed over; breaks if none will be any more.
    fn sleep(&self, is_news: bool) -> ControlFlow<()> {
        let is_busy = || self.producer.in_flight_count() > 0;
        let pause = if is_news {
            Duration::ZERO
        } else if is_busy() {
            BUSY_PAUSE
        } else {
            self.is_asleep.store(true, Ordering::SeqCst);
            // A line may have been handed over just before.
            if is_busy() { BUSY_PAUSE } else { IDLE_PAUSE }
        };
        let woken = self.wake.recv_timeout(pause);
        self.is_asleep.store(false, Ordering::SeqCst);
        match woken {
            Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}
