//! A page as a reader sees it: its text, its charts, and how a browser shows it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use html5gum::{Token, Tokenizer};

/// A page, read and found to be well-formed.
pub(crate) struct Page {
    html: String,
    text: String,
    elements: Vec<Element>,
}

struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    /// The text in it and in what it contains.
    text: String,
}

/// A window of a browser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// What the reader prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

/// What a browser made of the page, in CSS pixels.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Seen {
    pub(crate) view_width: u32,
    pub(crate) page_width: u32,
    pub(crate) page_height: u32,
    pub(crate) smallest_text: f64,
    pub(crate) charts_shown: u32,
    pub(crate) is_dark: bool,
}

impl Page {
    pub(crate) fn read(path: &Path) -> Self {
        let html = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let (text, elements) = parse(&html);
        Self { html, text, elements }
    }

    pub(crate) fn assert_tells(&self, what: &str) {
        assert!(self.text.contains(what), "{what:?} is not told:\n{}", self.text);
    }

    /// Passes if nothing in the page makes a browser ask anybody for anything.
    pub(crate) fn assert_is_self_contained(&self) {
        const SVG: &str = "http://www.w3.org/2000/svg";
        for Element { name, attributes, text } in &self.elements {
            assert!(
                !["script", "link", "img", "iframe", "object", "base"].contains(&name.as_str())
            );
            for (attribute, value) in attributes {
                assert!(!["src", "href", "xlink:href", "style"].contains(&attribute.as_str()));
                assert!(!value.contains("//") || value == SVG, "{name} {attribute}={value}");
            }
            let is_css = name == "style";
            assert!(
                !is_css || !["//", "url(", "@import"].iter().any(|s| text.contains(s)),
                "{text}"
            );
        }
        // The address of the service, as text only.
        let links = self.html.matches("://").count() - self.html.matches(SVG).count();
        assert_eq!(links, self.text.matches("http://127.0.0.1:").count(), "{}", self.text);
    }

    /// Passes if every chart has the numbers of so many upgrades above it.
    pub(crate) fn assert_marks_upgrades(&self, count: usize) {
        let marks =
            self.elements.iter().filter(|it| it.name == "text" && it.has("fill", "#000003"));
        let charts = self.elements.iter().filter(|element| element.name == "svg").count();
        assert_eq!(charts, 6, "two charts in three sizes");
        assert_eq!(marks.count(), charts * count);
    }

    /// The numbers of the processes, as the largest chart tells them apart.
    pub(crate) fn processes(&self) -> Vec<String> {
        let labels =
            self.elements.iter().filter(|it| it.name == "text" && it.has("fill", "#000009"));
        let mut labels: Vec<_> = labels.map(|element| element.text.trim().to_owned()).collect();
        labels.sort();
        labels.dedup();
        labels
    }

    /// The lost requests, as they are listed.
    pub(crate) fn losses(&self) -> Vec<String> {
        let start = self.html.find("<ol class=\"losses\">").expect("there is a list");
        let end = start + self.html[start..].find("</ol>").unwrap();
        let (_, elements) = parse(&self.html[start..end + "</ol>".len()]);
        let items = elements.into_iter().filter(|element| element.name == "li");
        items.map(|item| item.text).collect()
    }

    /// Measures the page in windows of these sizes.
    ///
    /// A browser's own window has a least width, which a phone is below; so each window is a frame in
    /// a page that also measures.
    pub(crate) fn measure(&self, chromium: &Path, screens: &[Screen], scheme: Scheme) -> Vec<Seen> {
        const MEASURE: &str = "<script>onload = () => {
            const views = [...document.querySelectorAll('iframe')].map(it => it.contentWindow);
            const seen = views.map(view => {
                const page = view.document, root = page.documentElement;
                const shown = [...page.querySelectorAll('body *')].filter(it => it.checkVisibility());
                const leaves = shown.filter(it => it.textContent.trim() && !it.children.length);
                const sizes = leaves.map(it => {
                    const svg = it.closest('svg'), size = parseFloat(view.getComputedStyle(it).fontSize);
                    return svg ? size * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : size;
                });
                const right = shown.map(it => it.getBoundingClientRect().right);
                return {
                    view_width: view.innerWidth,
                    page_width: Math.floor(Math.max(root.scrollWidth, ...right)),
                    page_height: root.scrollHeight,
                    smallest_text: Math.min(...sizes),
                    charts_shown: shown.filter(it => it.tagName == 'svg').length,
                    is_dark: view.matchMedia('(prefers-color-scheme: dark)').matches,
                };
            });
            document.body.textContent = 'SEEN' + JSON.stringify(seen) + 'SEEN';
        }</script>";
        let folder = tempfile::tempdir().unwrap();
        let wrapper = self.wrapper(folder.path(), screens, MEASURE);
        let mut command = browser(chromium, folder.path(), scheme);
        let output = command.arg("--dump-dom").arg(wrapper).output().unwrap();
        let dom = String::from_utf8(output.stdout).unwrap();
        let json =
            dom.split("SEEN").nth(1).unwrap_or_else(|| panic!("nothing was measured: {dom}"));
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
    }

    /// Takes a picture of what such a window shows first.
    pub(crate) fn screenshot(&self, chromium: &Path, screen: Screen, scheme: Scheme, path: &Path) {
        let folder = tempfile::tempdir().unwrap();
        let wrapper = self.wrapper(folder.path(), &[screen], "");
        let mut command = browser(chromium, folder.path(), scheme);
        command.arg(format!("--window-size={},{}", screen.width, screen.height));
        command.arg(format!("--screenshot={}", path.display())).arg(wrapper);
        let output = command.output().unwrap();
        let png = fs::read(path).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), (screen.width, screen.height), "{path:?}");
        assert!(png.len() > 10_000, "an empty picture: {path:?}");
    }

    fn wrapper(&self, folder: &Path, screens: &[Screen], script: &str) -> String {
        let page = self.html.replace('&', "&amp;").replace('"', "&quot;");
        let mut wrapper = "<!doctype html><meta charset=utf-8>\
            <style>body { margin: 0 } iframe { border: 0; display: block }</style><body>"
            .to_owned();
        for Screen { width, height } in screens {
            let size = format!("width={width} height={height}");
            wrapper += &format!("<iframe {size} srcdoc=\"{page}\"></iframe>");
        }
        let path = folder.join("wrapper.html");
        fs::write(&path, wrapper + script).unwrap();
        format!("file://{}", path.display())
    }
}

impl Element {
    fn has(&self, attribute: &str, value: &str) -> bool {
        self.attributes.iter().any(|(a, v)| a == attribute && v == value)
    }
}

/// The browser, if there is one.
pub(crate) fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let folders: Vec<_> = env::split_paths(&env::var_os("PATH")?).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

fn browser(chromium: &Path, folder: &Path, scheme: Scheme) -> Command {
    // With a deadline for all its processes, should it hang.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60"]).arg(chromium);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
    command.args(["--no-first-run", "--disable-background-networking", "--hide-scrollbars"]);
    command.args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    let number = match scheme {
        Scheme::Dark => 0,
        Scheme::Light => 1,
    };
    command.arg(format!("--blink-settings=preferredColorScheme={number}"));
    command
}

/// All text, and every element with its own; panics if a tag is not closed, or closed twice.
fn parse(html: &str) -> (String, Vec<Element>) {
    const VOID: [&str; 4] = ["meta", "br", "hr", "link"];
    let mut text = String::new();
    let mut done = Vec::new();
    let mut open: Vec<(Element, usize)> = Vec::new();
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for token in Tokenizer::new(html) {
        match token.unwrap() {
            Token::StartTag(tag) => {
                let name = utf8(&tag.name);
                let attributes =
                    tag.attributes.iter().map(|(name, value)| (utf8(name), utf8(value))).collect();
                let is_void = tag.self_closing || VOID.contains(&name.as_str());
                let element = Element { name, attributes, text: String::new() };
                if is_void {
                    done.push(element);
                } else {
                    open.push((element, text.len()));
                }
            }
            Token::EndTag(tag) => {
                let (mut element, start) = open.pop().expect("there is an element to close");
                assert_eq!(element.name, utf8(&tag.name), "closes what is not open");
                element.text = text[start..].to_owned();
                done.push(element);
            }
            Token::String(string) => text.push_str(&utf8(&string).replace('\u{202f}', "")),
            Token::Error(error) => panic!("the page is not well-formed: {error:?}"),
            Token::Comment(_) | Token::Doctype(_) => {}
        }
    }
    assert!(
        open.is_empty(),
        "never closed: {:?}",
        open.iter().map(|it| &it.0.name).collect::<Vec<_>>()
    );
    (text, done)
}
