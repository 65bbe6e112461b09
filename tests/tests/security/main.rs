//! Who gets in, who does not, and what strangers see: real processes, TLS and tokens.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod certificates;
mod running;
mod strangers;

use std::process::Stdio;

use certificates::{Certificates, TOKEN};
use g2rl_tests::{coordinator, finish, until, worker};
use running::{DEADLINE, Guard, Running, arguments, talkative};

/// Settings of a coordinator that accepts workers with a certificate only.
fn mutual_tls(files: &Certificates, certificate: &str) -> Vec<String> {
    vec![
        format!("security.tls_certificate={}", files.path(&format!("{certificate}.pem"))),
        format!("security.tls_key={}", files.path(&format!("{certificate}.key"))),
        format!("security.client_ca={}", files.path("ca.pem")),
        format!("security.worker_ca={}", files.path("ca.pem")),
        format!("security.worker_certificate={}", files.path("worker.pem")),
        format!("security.worker_key={}", files.path("worker.key")),
    ]
}

/// No byte of these may be in what a run leaves or says.
fn secrets(files: &Certificates) -> Vec<String> {
    let key = |name: &str| files.read(name).lines().nth(1).unwrap().to_owned();
    vec![TOKEN.to_owned(), key("coordinator.key"), key("worker.key")]
}

fn assert_none(secrets: &[String], place: &str, bytes: &[u8]) {
    for secret in secrets {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{place} holds a secret");
    }
}

#[test]
fn a_run_over_mutual_tls_lets_in_who_belongs_to_it_and_nobody_else() {
    let files = Certificates::new();
    let mut settings = mutual_tls(&files, "coordinator");
    settings.extend([
        format!("security.token_file={}", files.path("token")),
        "cluster.min_workers=2".into(),
        "cluster.max_workers=2".into(),
    ]);
    let mut running = Running::start(&settings, &[], None);
    let url = format!("https://{}", running.workers);
    let path = |name: &str| files.path(name);
    let (ca, token) = (path("ca.pem"), path("token"));
    let (certificate, key) = (path("worker.pem"), path("worker.key"));
    let start = |url: &str, arguments: &[&str]| {
        let base = ["run", "--devices", "cpu", "--connect-timeout", "2", "--coordinator", url];
        let mut command = talkative(worker(&[&base[..], arguments].concat()));
        command.env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
        command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0");
        command
    };
    let own = ["--ca", &ca, "--certificate", &certificate, "--key", &key];

    // 1. Strangers, each with one thing wrong, and told which.
    let (other_ca, other_token) = (path("other-ca.pem"), path("other-token"));
    let (stranger, stranger_key) = (path("stranger.pem"), path("stranger.key"));
    let plain = url.replace("https", "http");
    let wrong: [(&str, Vec<&str>, &str); 7] = [
        (&url, own.to_vec(), "does not accept a worker without a token"),
        (&url, [&own[..], &["--token-file", &other_token]].concat(), "does not accept this worker's token"),
        (&url, vec!["--ca", &ca, "--token-file", &token], "accepts workers with a certificate only"),
        (
            &url,
            vec!["--ca", &ca, "--certificate", &stranger, "--key", &stranger_key, "--token-file", &token],
            "does not accept this worker's certificate",
        ),
        (
            &url,
            vec!["--ca", &other_ca, "--certificate", &certificate, "--key", &key, "--token-file", &token],
            "certificate is not signed by",
        ),
        (
            &url,
            [&own[..], &["--token-file", &token, "--server-name", "other.example"]].concat(),
            "certificate is not for this address",
        ),
        (&plain, vec!["--token-file", &token], "begins with https://"),
    ];
    for (url, arguments, words) in wrong {
        let finished = finish(start(url, &arguments), DEADLINE).unwrap();
        assert!(!finished.success && finished.text.contains(words), "{words}:\n{}", finished.text);
        assert_none(&secrets(&files), words, finished.text.as_bytes());
    }
    assert_eq!(running.metric("g2rl_auth_failures_total"), 2.0);
    assert_eq!(running.metric("g2rl_ranks"), 0.0);
    running.wait_for("refused a request with no token");

    // 2. Workers with certificate and token, one from a file and one from the environment.
    let log = |name: &str| std::fs::File::create(running.dir.path().join(name)).unwrap();
    let mut first = start(&url, &[&own[..], &["--token-file", &token]].concat());
    let _first = Guard(first.stdout(Stdio::null()).stderr(log("first")).spawn().unwrap());
    let mut second = start(&url, &own);
    second.env("G2RL_TOKEN", TOKEN);
    let _second = Guard(second.stdout(Stdio::null()).stderr(log("second")).spawn().unwrap());
    running.finish();

    // 3. Nothing of it was written down.
    for file in running.files() {
        assert_none(&secrets(&files), &file.display().to_string(), &std::fs::read(&file).unwrap());
    }
    assert_none(&secrets(&files), "the log", running.log.lock().unwrap().join("\n").as_bytes());
}

#[test]
fn local_workers_get_the_token_where_nobody_sees_it() {
    let files = Certificates::new();
    let settings = [mutual_tls(&files, "coordinator"), vec!["cluster.min_workers=1".to_owned()]].concat();
    let mut running = Running::start(&settings, &["--local-workers", "1"], Some(TOKEN));
    // Who is waiting for a worker, or has one, has started it.
    let pid = running.child.0.id();
    let children = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let children =
            tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        children.collect::<String>().split_whitespace().next().map(str::to_owned)
    };
    let child = until(DEADLINE, children).unwrap();
    let arguments = until(DEADLINE, || {
        let bytes = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
        String::from_utf8_lossy(&bytes).contains("--coordinator").then_some(bytes)
    });
    let arguments = arguments.unwrap();
    assert!(String::from_utf8_lossy(&arguments).contains("--ca"));
    assert_none(&secrets(&files), "the command line", &arguments);
    for path in ["/metrics", "/healthz", "/readyz", "/"] {
        assert_none(&secrets(&files), path, running.http("GET", path).as_bytes());
    }
    running.finish();
    for file in running.files() {
        assert_none(&secrets(&files), &file.display().to_string(), &std::fs::read(&file).unwrap());
    }
    assert_none(&secrets(&files), "the log", running.log.lock().unwrap().join("\n").as_bytes());
}

#[test]
fn a_certificate_whose_time_is_over_is_said_to_be() {
    let files = Certificates::new();
    let running = Running::start(&mutual_tls(&files, "expired"), &[], None);
    let (url, ca) = (format!("https://{}", running.workers), files.path("ca.pem"));
    let arguments = ["run", "--devices", "cpu", "--coordinator", &url, "--ca", &ca];
    let finished = finish(worker(&arguments), DEADLINE).unwrap();
    assert!(!finished.success && finished.text.contains("is not valid now"), "{}", finished.text);
}

#[test]
fn the_network_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("run/checkpoints/step-000001/model.safetensors");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "weights").unwrap();
    std::fs::write(dir.path().join("run/journal.sqlite"), "journal").unwrap();
    let files = Certificates::new();
    let certificate = format!("security.tls_certificate={}", files.path("coordinator.pem"));
    let key = format!("security.tls_key={}", files.path("coordinator.key"));
    for settings in
        [vec![], vec![certificate, key], vec![format!("security.token_file={}", files.path("token"))]]
    {
        let settings = [vec!["cluster.listen=0.0.0.0:0".to_owned()], settings].concat();
        let mut arguments = arguments(dir.path(), &settings);
        arguments.push("--overwrite".into());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = coordinator(&arguments);
        command.env_remove("G2RL_TOKEN");
        let finished = finish(command, DEADLINE).unwrap();
        assert!(!finished.success, "{}", finished.text);
        for word in
            ["cluster.listen", "security.tls_certificate", "security.token_file", "allow_plaintext_network"]
        {
            assert!(finished.text.contains(word), "{word}: {}", finished.text);
        }
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "weights");
        assert!(!dir.path().join("run/config.toml").exists());
    }
}

#[test]
fn a_shown_configuration_holds_no_token() {
    let files = Certificates::new();
    let setting = format!("security.token_file={}", files.path("token"));
    let arguments = ["config", "show", "--config", "configs/demo.toml", "--set", &setting];
    let mut command = coordinator(&arguments);
    command.env("G2RL_TOKEN", TOKEN);
    let finished = finish(command, DEADLINE).unwrap();
    assert!(finished.success && finished.text.contains("token_file"), "{}", finished.text);
    assert_none(&secrets(&files), "config show", finished.text.as_bytes());
}
