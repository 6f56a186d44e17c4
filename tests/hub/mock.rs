//! A small hub on the loopback interface: one repository, `Org/Name` unless told otherwise, with faults on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "1111111111111111111111111111111111111111";
pub const OLD_COMMIT: &str = "2222222222222222222222222222222222222222";

/// What the hub holds and how it misbehaves.
pub struct Behaviour {
    /// What its only repository is called.
    pub repository: &'static str,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Sends only that many bytes of each answer for the file, this many times.
    pub cut: Mutex<Option<(&'static str, usize, u32)>>,
    /// Sends other bytes than announced.
    pub corrupt: Option<&'static str>,
    /// Refuses requests without this token.
    pub token: Option<&'static str>,
    /// Answers every request with this status and `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    /// Lists names without sizes and hashes, as some mirrors do.
    pub names_only: bool,
    pub ignore_ranges: bool,
    /// Large files come from another host, as on the real hub.
    pub redirect: bool,
}

impl Behaviour {
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        Self {
            repository: "Org/Name",
            files: files
                .iter()
                .map(|(name, content)| ((*name).to_owned(), content.to_vec()))
                .collect(),
            cut: Mutex::new(None),
            corrupt: None,
            token: None,
            refuse: None,
            names_only: false,
            ignore_ranges: false,
            redirect: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub from: Option<usize>,
    pub authorization: Option<String>,
}

pub struct MockHub {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl MockHub {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is part of the game.
                let _ = answer(stream, &behaviour, &log, port);
            }
        });
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            requests,
        }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The start bytes of the requests for one file.
    pub fn ranges(&self, name: &str) -> Vec<Option<usize>> {
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.path.ends_with(&format!("/{name}")))
            .map(|request| request.from)
            .collect()
    }
}

pub fn sha256(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn listing(behaviour: &Behaviour, commit: &str) -> String {
    let siblings: Vec<_> = behaviour
        .files
        .iter()
        .map(|(name, content)| {
            let (hash, size) = (sha256(content), content.len());
            if behaviour.names_only {
                serde_json::json!({"rfilename": name})
            } else if is_large(name) {
                let lfs = serde_json::json!({"sha256": hash, "size": size, "pointerSize": 134});
                serde_json::json!({"rfilename": name, "size": size, "blobId": &hash[24..], "lfs": lfs})
            } else {
                serde_json::json!({"rfilename": name, "size": size, "blobId": &hash[..40]})
            }
        })
        .collect();
    serde_json::json!({"sha": commit, "siblings": siblings}).to_string()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        from: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                request.from = value
                    .strip_prefix("bytes=")
                    .and_then(|range| range.trim_end_matches('-').parse().ok());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(request)
}

fn answer(mut stream: TcpStream, behaviour: &Behaviour, log: &Mutex<Vec<Request>>, port: u16) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    log.lock().unwrap().push(request.clone());
    let mut respond = |status: u16, headers: &str, body: &[u8]| {
        let length = if headers.contains("Content-Length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let head = format!("HTTP/1.1 {status} Mock\r\n{length}Connection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)
    };
    if let Some((status, code)) = behaviour.refuse {
        return respond(status, &format!("X-Error-Code: {code}\r\n"), b"refused");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let storage = path.strip_prefix("/storage/");
    let authorized = behaviour
        .token
        .is_none_or(|token| request.authorization == Some(format!("Bearer {token}")));
    if !authorized && storage.is_none() {
        return respond(401, "X-Error-Code: RepoNotFound\r\n", b"");
    }
    let revision = ["models", "datasets"]
        .iter()
        .find_map(|kind| path.strip_prefix(&format!("/api/{kind}/{}/revision/", behaviour.repository)));
    if let Some(revision) = revision {
        return match revision {
            "main" | "refs%2Fconvert%2Fparquet" | COMMIT => respond(200, "", listing(behaviour, COMMIT).as_bytes()),
            "old" | OLD_COMMIT => respond(200, "", listing(behaviour, OLD_COMMIT).as_bytes()),
            _ => respond(404, "X-Error-Code: RevisionNotFound\r\n", b""),
        };
    }
    let resolved = path
        .trim_start_matches("/datasets")
        .strip_prefix(&format!("/{}/resolve/", behaviour.repository))
        .and_then(|rest| rest.split_once('/'));
    let Some(name) = storage.or(resolved.map(|(_, name)| name)) else {
        return respond(404, "X-Error-Code: RepoNotFound\r\n", b"");
    };
    let Some(content) = behaviour.files.get(name) else {
        return respond(404, "X-Error-Code: EntryNotFound\r\n", b"");
    };
    let (hash, size) = (sha256(content), content.len());
    if behaviour.redirect && storage.is_none() && is_large(name) {
        let location = format!("Location: http://localhost:{port}/storage/{name}\r\n");
        return respond(
            302,
            &format!("{location}X-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {size}\r\n"),
            b"",
        );
    }
    let mut content = content.clone();
    if behaviour.corrupt == Some(name) {
        content[0] ^= 1;
    }
    let etag = if is_large(name) { &hash } else { &hash[..40] };
    let (status, from) = match request.from {
        Some(from) if from >= size => return respond(416, "", b""),
        Some(from) if !behaviour.ignore_ranges => (206, from),
        _ => (200, 0),
    };
    let mut end = size;
    if let Some((cut, bytes, times)) = &mut *behaviour.cut.lock().unwrap()
        && *cut == name
        && *times > 0
    {
        *times -= 1;
        end = size.min(from + *bytes);
    }
    let range = match status {
        206 => format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1),
        _ => String::new(),
    };
    let headers = format!("ETag: \"{etag}\"\r\nContent-Length: {}\r\n{range}", size - from);
    respond(status, &headers, &content[from..end])
}
