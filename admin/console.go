package admin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"time"
)

//go:embed console
var consoleFiles embed.FS

// What the page may do: load its own script, style and picture, and ask the node that it
// came from. Nothing from elsewhere, nothing that stands in the page itself.
const consolePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// console routes the page at / and what belongs to it.
func (s *Server) console(mux *http.ServeMux) {
	for _, f := range []struct{ route, file string }{
		{"/{$}", "console/index.html"},
		{"/console/console.css", "console/console.css"},
		{"/console/console.js", "console/console.js"},
		{"/console/icon.svg", "console/icon.svg"},
	} {
		content, err := consoleFiles.ReadFile(f.file)
		if err != nil {
			panic(fmt.Sprintf("%s is not in the binary: %v", f.file, err)) // it was built without
		}
		digest := sha256.Sum256(content)
		tag := `"` + hex.EncodeToString(digest[:8]) + `"`
		mux.HandleFunc("GET "+f.route, func(w http.ResponseWriter, r *http.Request) {
			header := w.Header()
			header.Set("Content-Security-Policy", consolePolicy)
			header.Set("X-Content-Type-Options", "nosniff")
			header.Set("Referrer-Policy", "no-referrer")
			header.Set("Cache-Control", "no-cache") // ask whether it is still the same
			header.Set("ETag", tag)
			http.ServeContent(w, r, path.Base(f.file), time.Time{}, bytes.NewReader(content))
		})
	}
}
