//! A name server for tests, on loopback.
//!
//! Owns its socket and its records, which a test changes while it runs. Never asks anybody else. In:
//! questions over UDP; out: its records, that there are none, a failure, or nothing at all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// Longest question.
const QUESTION_BYTES_MAX: usize = 4096;

/// How the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Well,
    /// It says that it cannot.
    Failing,
    /// It says nothing.
    Silent,
}

struct State {
    records: Vec<(Name, RData)>,
    mood: Mood,
    asked: u64,
}

/// A running name server; ends when it is dropped.
pub struct Names {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(text: &str) -> Name {
    let mut name = Name::from_str(text).expect("a name of a test").to_lowercase();
    name.set_fqdn(true);
    name
}

impl Names {
    /// Starts one without records.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has free ports");
        let address = socket.local_addr().expect("a bound socket has an address");
        let state = State { records: Vec::new(), mood: Mood::Well, asked: 0 };
        let state = Arc::new(Mutex::new(state));
        let task = tokio::spawn(serve(socket, state.clone())).abort_handle();
        Self { address, state, task }
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many questions have come.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.with(|state| state.asked)
    }

    /// Changes how it is.
    pub fn set_mood(&self, mood: Mood) {
        self.with(|state| state.mood = mood);
    }

    /// Replaces the addresses of a name.
    pub fn set_addresses(&self, of: &str, addresses: &[IpAddr]) {
        let data = addresses.iter().map(|address| RData::from(*address));
        self.replace(of, data.collect());
    }

    /// Replaces the SRV records of a name: targets and ports.
    pub fn set_services(&self, of: &str, targets: &[(&str, u16)]) {
        let data = targets.iter().map(|(target, port)| RData::SRV(SRV::new(10, 1, *port, name(target))));
        self.replace(of, data.collect());
    }

    fn replace(&self, of: &str, data: Vec<RData>) {
        let of = name(of);
        self.with(|state| {
            state.records.retain(|(name, _)| *name != of);
            state.records.extend(data.into_iter().map(|data| (of.clone(), data)));
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut bytes = [0; QUESTION_BYTES_MAX];
    while let Ok((len, from)) = socket.recv_from(&mut bytes).await {
        let answer = Message::from_vec(&bytes[..len]).ok().and_then(|question| answer(&question, &state));
        if let Some(answer) = answer.and_then(|answer| answer.to_vec().ok()) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

fn answer(question: &Message, state: &Mutex<State>) -> Option<Message> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.asked += 1;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.clone());
    match state.mood {
        Mood::Silent => return None,
        Mood::Failing => answer.metadata.response_code = ResponseCode::ServFail,
        Mood::Well => {
            let asked = question.queries.first()?;
            let of = asked.name().to_lowercase();
            let mut named = state.records.iter().filter(|(name, _)| *name == of).peekable();
            if named.peek().is_none() {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            let of_type = named.filter(|(_, data)| data.record_type() == asked.query_type());
            answer.add_answers(
                of_type.map(|(_, data)| Record::from_rdata(asked.name().clone(), 60, data.clone())),
            );
        }
    }
    Some(answer)
}
