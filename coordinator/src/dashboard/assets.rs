//! The dashboard's files, inside the program: nothing is built, and nothing is loaded from the network.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// The page.
pub(super) const PAGE: &str = include_str!("../../assets/dashboard.html");

macro_rules! assets {
    ($($path:literal $kind:expr,)*) => {
        /// Every file by its path under `/assets/`.
        const ASSETS: &[(&str, &str, &str)] =
            &[$(($path, $kind, include_str!(concat!("../../assets/", $path)))),*];
    };
}

assets! {
    "css/theme.css" CSS,
    "css/layout.css" CSS,
    "css/charts.css" CSS,
    "css/groups.css" CSS,
    "js/app.js" JAVASCRIPT,
    "js/api.js" JAVASCRIPT,
    "js/dom.js" JAVASCRIPT,
    "js/format.js" JAVASCRIPT,
    "js/charts.js" JAVASCRIPT,
    "js/heatmap.js" JAVASCRIPT,
    "js/curves.js" JAVASCRIPT,
    "js/groups.js" JAVASCRIPT,
    "js/theme.js" JAVASCRIPT,
    "js/pages/overview.js" JAVASCRIPT,
    "js/pages/geometry.js" JAVASCRIPT,
    "js/pages/browser.js" JAVASCRIPT,
    "js/pages/ranks.js" JAVASCRIPT,
    "js/pages/config.js" JAVASCRIPT,
    "vendor/uplot-1.6.32/uPlot.esm.js" JAVASCRIPT,
    "vendor/uplot-1.6.32/uPlot.min.css" CSS,
    "vendor/uplot-1.6.32/LICENSE" "text/plain; charset=utf-8",
}

/// A file.
pub(super) async fn serve(Path(path): Path<String>) -> Response {
    match ASSETS.iter().find(|(name, ..)| *name == path) {
        // Another version of the program has other files.
        Some((_, kind, text)) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")], *text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup() {
        for (name, _, text) in ASSETS.iter().filter(|(name, ..)| !name.starts_with("vendor/")) {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://"]
            {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
        }
        for forbidden in ["<script>", "style=", " onclick", "https://"] {
            assert!(!PAGE.contains(forbidden), "the page has {forbidden}");
        }
    }

    #[test]
    fn every_file_that_is_named_is_there() {
        let has = |path: &str| ASSETS.iter().any(|(name, ..)| *name == path);
        let named = PAGE.split("\"/assets/").skip(1).filter_map(|rest| rest.split('"').next());
        let named: Vec<&str> = named.collect();
        assert!(named.len() > 4 && named.iter().all(|path| has(path)), "{named:?}");
        for (name, _, text) in ASSETS.iter().filter(|(name, ..)| name.starts_with("js/")) {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            for import in text.split(" from \"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let mut path: Vec<&str> = folder.split('/').collect();
                for part in import.split('/') {
                    match part {
                        "." => {}
                        ".." => drop(path.pop()),
                        part => path.push(part),
                    }
                }
                assert!(has(&path.join("/")), "{name} imports {import}");
            }
        }
    }
}
