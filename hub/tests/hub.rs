//! Downloads from a small server that speaks as the hub does, through its good and bad days.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use g2rl_hub::{HubError, HubOptions, Reference, dataset, model};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has, and what it does wrong.
#[derive(Default)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    /// Break the connection after this many bytes of a file's body, once.
    break_after: Mutex<Option<usize>>,
    /// Give other bytes than the checksum says.
    corrupt: bool,
    requests: AtomicUsize,
    /// First byte of each range asked for beyond the first.
    resumed_at: Mutex<Vec<usize>>,
}

impl Hub {
    /// Serves on a free port for as long as the test runs.
    fn serve(self) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(self);
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                std::thread::spawn(move || server.answer(stream.unwrap()));
            }
        });
        (hub, address)
    }

    /// One request a connection.
    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut start = 0;
        let mut end = usize::MAX;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(range) = header.to_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = range.trim().split_once('-')?;
                start = first.parse().ok()?;
                end = last.parse().unwrap_or(usize::MAX);
            }
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        if path.starts_with("/api/") {
            if !path.contains("/owner/name/") {
                return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok();
            }
            let files: Vec<_> = self.files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
            let body = serde_json::json!({"siblings": files, "sha": COMMIT}).to_string();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
            .ok();
        }
        let name = path.split(&format!("/resolve/{COMMIT}/")).nth(1)?;
        let content = &self.files[name];
        let hash: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
        let last = end.min(content.len() - 1);
        let mut body = content[start..=last].to_vec();
        if self.corrupt {
            body.iter_mut().for_each(|byte| *byte ^= 1);
        }
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{last}/{}\r\n\
             etag: \"{hash}\"\r\nx-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n",
            body.len(),
            content.len()
        )
        .ok()?;
        if start > 0 {
            self.resumed_at.lock().unwrap().push(start);
        }
        if let Some(after) = self.break_after.lock().unwrap().take_if(|after| body.len() > *after) {
            stream.write_all(&body[..after]).ok()?;
            return stream.shutdown(std::net::Shutdown::Both).ok();
        }
        stream.write_all(&body).ok()
    }
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..200_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let small = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        ("config.json".to_owned(), small("{\"model_type\":\"qwen3\"}")),
        ("tokenizer.json".to_owned(), small("{}")),
        ("README.md".to_owned(), small("not needed")),
        ("pytorch_model.bin".to_owned(), small("not needed")),
        ("model.safetensors".to_owned(), weights),
    ])
}

fn options(endpoint: &str, cache: &Path) -> HubOptions {
    HubOptions { cache: cache.to_owned(), endpoint: endpoint.to_owned(), token: None, offline: false }
}

#[test]
fn a_model_is_downloaded_once_and_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, endpoint) = Hub { files: files(), ..Hub::default() }.serve();
    let options = options(&endpoint, cache.path());
    let dir = model("owner/name", &options).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    assert!(dir.join("config.json").exists() && !dir.join("pytorch_model.bin").exists());

    let asked = hub.requests.load(Ordering::SeqCst);
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(model("owner/name", &offline).unwrap(), dir);
    assert_eq!(model(&format!("owner/name@{COMMIT}"), &offline).unwrap(), dir);
    assert_eq!(hub.requests.load(Ordering::SeqCst), asked, "the cache has everything");
    assert_eq!(model(dir.to_str().unwrap(), &offline).unwrap(), dir, "a directory is a model");
}

#[test]
fn a_broken_download_is_resumed_where_it_broke() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: files(), break_after: Mutex::new(Some(70_000)), ..Hub::default() };
    let (hub, endpoint) = hub.serve();
    let dir = model("owner/name", &options(&endpoint, cache.path())).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    let resumed = hub.resumed_at.lock().unwrap().clone();
    assert!(resumed.iter().any(|start| (1..=70_000).contains(start)), "{resumed:?}");
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let (_, endpoint) = Hub { files: files(), corrupt: true, ..Hub::default() }.serve();
    let error = model("owner/name", &options(&endpoint, cache.path())).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    // The next try, against a sound server, succeeds.
    let (_, endpoint) = Hub { files: files(), ..Hub::default() }.serve();
    model("owner/name", &options(&endpoint, cache.path())).unwrap();
}

#[test]
fn what_cannot_be_had_is_explained() {
    let cache = tempfile::tempdir().unwrap();
    // A port where nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let alone = options(&format!("http://127.0.0.1:{port}"), cache.path());
    let error = model("owner/name", &alone).unwrap_err().to_string();
    assert!(
        error.contains("owner/name is not complete in") && error.contains("cannot be reached"),
        "{error}"
    );
    assert!(error.contains("copy the repository's files into a directory"), "{error}");
    let error = model("owner/name", &HubOptions { offline: true, ..alone.clone() }).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let error = model("no/such/path", &alone).unwrap_err().to_string();
    assert!(error.contains("neither a directory nor a name"), "{error}");

    let (_, endpoint) = Hub { files: files(), ..Hub::default() }.serve();
    let error = model("other/model", &options(&endpoint, cache.path())).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("HF_TOKEN"), "{error}");
    let mut files = files();
    files.remove("model.safetensors");
    let (_, endpoint) = Hub { files, ..Hub::default() }.serve();
    let error = model("owner/name", &options(&endpoint, cache.path())).unwrap_err().to_string();
    assert!(error.contains("no safetensors file") && error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn a_repository_cannot_write_beside_the_cache() {
    for name in ["../../../../escaped.json", "/tmp/escaped.json", "a//escaped.json"] {
        let cache = tempfile::tempdir().unwrap();
        let mut files = files();
        files.insert(name.to_owned(), b"{}".to_vec());
        let (hub, endpoint) = Hub { files, ..Hub::default() }.serve();
        let options = options(&endpoint, cache.path());
        let all = |names: &[String]| -> Result<Vec<String>, HubError> { Ok(names.to_vec()) };
        let error = dataset(&Reference::parse("owner/name").unwrap(), &options, all).unwrap_err();
        assert!(matches!(&error, HubError::BadName { name: bad, .. } if bad == name), "{error}");
        assert!(model("owner/name", &options).is_err());
        assert_eq!(hub.requests.load(Ordering::SeqCst), 2, "nothing but the lists was asked for");
    }
}

#[test]
fn a_data_set_gives_the_chosen_files() {
    let cache = tempfile::tempdir().unwrap();
    let files = BTreeMap::from([
        ("main/train-00000-of-00002.parquet".to_owned(), b"first".to_vec()),
        ("main/train-00001-of-00002.parquet".to_owned(), b"second".to_vec()),
        ("main/test-00000-of-00001.parquet".to_owned(), b"test".to_vec()),
    ]);
    let (hub, endpoint) = Hub { files, ..Hub::default() }.serve();
    let options = options(&endpoint, cache.path());
    let reference = Reference::parse("owner/name").unwrap();
    let train = |names: &[String]| -> Result<Vec<String>, HubError> {
        Ok(names.iter().filter(|name| name.contains("train")).cloned().collect())
    };
    let paths = dataset(&reference, &options, train).unwrap();
    let texts: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert_eq!(texts, ["first", "second"]);
    let asked = hub.requests.load(Ordering::SeqCst);
    assert_eq!(dataset(&reference, &options, train).unwrap(), paths);
    assert_eq!(hub.requests.load(Ordering::SeqCst), asked, "the cache has everything");
}
