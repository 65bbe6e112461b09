//! The reward against a server in the test, over real sockets.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures::future::join_all;
use serde_json::{Value, json};

use super::*;

/// Deadline of whatever a test waits for.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the server does with a request.
#[derive(Clone)]
enum Reply {
    /// Each response's own text is its score.
    Scores,
    /// This status and body.
    Fixed(u16, &'static str),
    /// No answer.
    Silence,
    /// Scores, once so many requests are there at the same time or it is clear that no more come.
    Together(usize),
}

#[derive(Default)]
struct Server {
    /// The replies in turn; scores when they are used up.
    replies: Mutex<VecDeque<Reply>>,
    /// What every further request gets.
    then: Mutex<Option<Reply>>,
    requests: Mutex<Vec<Value>>,
    headers: Mutex<Vec<HeaderMap>>,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl Server {
    fn sizes(&self) -> Vec<usize> {
        self.requests.lock().unwrap().iter().map(|r| r["items"].as_array().unwrap().len()).collect()
    }
}

/// Counts a request while it is looked at, also when its client leaves.
struct Inside(Arc<Server>);

impl Inside {
    fn enter(server: &Arc<Server>) -> Self {
        let inside = server.inside.fetch_add(1, Ordering::SeqCst) + 1;
        server.most_inside.fetch_max(inside, Ordering::SeqCst);
        Self(server.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(State(server): State<Arc<Server>>, headers: HeaderMap, body: String) -> (StatusCode, String) {
    let _inside = Inside::enter(&server);
    let request: Value = serde_json::from_str(&body).unwrap();
    let scores: Vec<f64> = request["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["response"].as_str().unwrap().parse().unwrap())
        .collect();
    server.requests.lock().unwrap().push(request);
    server.headers.lock().unwrap().push(headers);
    let next = server.replies.lock().unwrap().pop_front();
    let reply = next.or_else(|| server.then.lock().unwrap().clone()).unwrap_or(Reply::Scores);
    match reply {
        Reply::Scores => {}
        Reply::Fixed(status, body) => return (StatusCode::from_u16(status).unwrap(), body.to_owned()),
        Reply::Silence => std::future::pending().await,
        Reply::Together(count) => {
            let together = until(|| server.inside.load(Ordering::SeqCst) > count);
            // One more than allowed would be there by then.
            let _ = tokio::time::timeout(Duration::from_millis(100), together).await;
        }
    }
    (StatusCode::OK, json!({"scores": scores}).to_string())
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Setup {
    server: Arc<Server>,
    reward: HttpReward,
    outages: watch::Receiver<Outages>,
}

/// A server with these replies, and a reward that asks it; short times, unless `change` has others.
async fn setup(replies: Vec<Reply>, change: impl FnOnce(&mut HttpRewardConfig)) -> Setup {
    let server = Arc::new(Server { replies: Mutex::new(replies.into()), ..Server::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let router = Router::new().route("/score", post(answer)).with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let mut config = HttpRewardConfig {
        url,
        linger_ms: 5,
        backoff_ms: 2,
        max_backoff_ms: 4,
        probe_ms: 5,
        timeout_ms: 20_000,
        ..HttpRewardConfig::default()
    };
    change(&mut config);
    let (reports, outages) = watch::channel(Outages::default());
    let reward = HttpReward::start(&config, "reward", Arc::new(reports)).unwrap();
    Setup { server, reward, outages }
}

impl Setup {
    async fn judge(&self, response: &str) -> Result<Judgement, RewardError> {
        let case = Case {
            id: format!("id of {response}"),
            prompt: "What?".to_owned(),
            response: response.to_owned(),
            answer: "42".to_owned(),
        };
        tokio::time::timeout(DEADLINE, self.reward.judge(&Arc::new(case))).await.expect("within the deadline")
    }

    async fn score(&self, response: &str) -> f64 {
        self.judge(response).await.unwrap().score
    }

    /// Scores of `0/count`, `1/count` and so on, asked for at the same time.
    async fn scores_of(&self, count: usize) {
        let responses: Vec<String> = (0..count).map(|i| format!("{}", i as f64 / count as f64)).collect();
        let scores = join_all(responses.iter().map(|response| self.score(response))).await;
        for (response, score) in responses.iter().zip(scores) {
            assert_eq!(response.parse::<f64>().unwrap(), score);
        }
    }
}

#[tokio::test]
async fn cases_travel_in_batches_and_scores_come_back_to_them() {
    let setup = setup(Vec::new(), |config| {
        // So long that only full batches go; 40 = 5 * 8.
        (config.batch_size, config.linger_ms, config.concurrency) = (8, 20_000, 2);
    })
    .await;
    setup.scores_of(40).await;
    assert_eq!(setup.server.sizes(), [8; 5]);
    let requests = setup.server.requests.lock().unwrap();
    let item = requests.iter().flat_map(|r| r["items"].as_array().unwrap()).find(|i| i["response"] == "0.5");
    let expected = json!({"id": "id of 0.5", "prompt": "What?", "response": "0.5", "answer": "42"});
    assert_eq!(item.unwrap(), &expected);
    assert!(setup.server.headers.lock().unwrap().iter().all(|h| !h.contains_key("authorization")));
}

#[tokio::test]
async fn a_batch_that_does_not_fill_goes_after_its_time() {
    let setup = setup(Vec::new(), |config| config.batch_size = 1_000).await;
    setup.scores_of(3).await;
    assert_eq!(setup.server.sizes().iter().sum::<usize>(), 3);
}

#[tokio::test]
async fn the_threshold_decides_what_is_correct() {
    let setup = setup(Vec::new(), |config| config.correct_from = 0.7).await;
    assert!(!setup.judge("0.6").await.unwrap().verdict.correct);
    let judgement = setup.judge("0.7").await.unwrap();
    assert!(judgement.verdict.correct);
    assert_eq!(judgement.verdict.reason, "the service's score is 0.700 of 1");
}

#[tokio::test]
async fn the_authorization_is_that_of_the_environment() {
    // A variable that every process has.
    let name = "PATH";
    let setup = setup(Vec::new(), |config| config.authorization_env = Some(name.to_owned())).await;
    setup.score("1").await;
    let expected = std::env::var(name).unwrap();
    assert_eq!(setup.server.headers.lock().unwrap()[0]["authorization"], expected.as_str());
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let replies = vec![
        Reply::Fixed(503, "busy"),
        Reply::Fixed(429, "slow down"),
        Reply::Fixed(200, "<html>"),
        Reply::Fixed(200, "{\"scores\":[1, 1]}"),
        Reply::Fixed(200, "[null]"),
    ];
    let tries = replies.len() as u32;
    let setup = setup(replies, |config| (config.retries, config.breaker_failures) = (tries, 100)).await;
    assert_eq!(setup.score("0.25").await, 0.25);
    assert_eq!(setup.server.requests.lock().unwrap().len(), 6);
    assert!(!setup.outages.has_changed().unwrap_or(false), "it never counted as down");
}

#[tokio::test]
async fn a_refused_request_is_not_tried_again() {
    let setup = setup(vec![Reply::Fixed(400, "no such\nmodel")], |_| {}).await;
    let error = setup.judge("1").await.unwrap_err().to_string();
    assert!(error.contains("refused a request: 400 Bad Request: no such model"), "{error}");
    assert!(error.contains("http://127.0.0.1"), "{error}");
    assert_eq!(setup.server.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_deadline_of_a_request() {
    let setup = setup(vec![Reply::Silence], |config| config.timeout_ms = 100).await;
    assert_eq!(setup.score("1").await, 1.0);
    assert_eq!(setup.server.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn requests_under_way_are_bounded() {
    let setup = setup(Vec::new(), |config| {
        (config.batch_size, config.concurrency) = (1, 3);
    })
    .await;
    *setup.server.then.lock().unwrap() = Some(Reply::Together(3));
    setup.scores_of(12).await;
    assert_eq!(setup.server.most_inside.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_outage_is_reported_and_all_cases_wait_for_its_end() {
    let setup = setup(Vec::new(), |config| {
        (config.batch_size, config.retries, config.breaker_failures) = (1, 100, 3);
    })
    .await;
    *setup.server.then.lock().unwrap() = Some(Reply::Fixed(500, "out of memory"));
    let mut outages = setup.outages.clone();
    let work = setup.scores_of(10);
    let repair = async {
        let down = tokio::time::timeout(DEADLINE, outages.wait_for(|o| !o.0.is_empty())).await;
        let text = down.unwrap().unwrap().to_string();
        assert!(text.contains("failed: 500 Internal Server Error: out of memory"), "{text}");
        // A few attempts later it is still down, and nobody has a score.
        let asked = setup.server.requests.lock().unwrap().len();
        let more = until(|| setup.server.requests.lock().unwrap().len() >= asked + 3);
        tokio::time::timeout(DEADLINE, more).await.unwrap();
        assert!(!outages.borrow().0.is_empty());
        *setup.server.then.lock().unwrap() = None;
        tokio::time::timeout(DEADLINE, outages.wait_for(|o| o.0.is_empty())).await.unwrap().unwrap();
    };
    tokio::join!(work, repair);
}

#[tokio::test]
async fn an_outage_that_lasts_is_an_error() {
    let setup = setup(Vec::new(), |config| config.give_up_after_s = 1).await;
    *setup.server.then.lock().unwrap() = Some(Reply::Fixed(502, "gone"));
    let error = setup.judge("1").await.unwrap_err();
    assert!(matches!(&error, RewardError::GaveUp { seconds: 1.., .. }), "{error}");
    assert!(error.to_string().contains("502 Bad Gateway: gone"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_outage() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let setup = setup(Vec::new(), |config| {
        (config.url, config.give_up_after_s, config.breaker_failures) = (url, 1, 2);
    })
    .await;
    let error = setup.judge("1").await.unwrap_err().to_string();
    assert!(error.contains("refused"), "the cause is named: {error}");
    assert_eq!(setup.outages.borrow().0.len(), 1);
}

#[test]
fn pauses_grow_to_their_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let config = HttpRewardConfig { url: "http://127.0.0.1:1/".to_owned(), ..HttpRewardConfig::default() };
    let service = Service {
        client: ServiceClient::new(&config, "reward").unwrap(),
        breaker: Mutex::new(Breaker::new(1, Duration::from_secs(1))),
        changed: Notify::new(),
        outages: Arc::new(watch::channel(Outages::default()).0),
        config,
    };
    // 250 ms doubled up to 10 s; between half and all of it.
    for (attempts, all) in [(1, 250), (2, 500), (5, 4_000), (7, 10_000), (4_000_000, 10_000)] {
        for _ in 0..20 {
            let pause = service.pause(attempts).as_millis();
            assert!((all / 2..=all).contains(&pause), "{attempts}: {pause} ms");
        }
    }
}
