package admin

import (
	"context"
	"encoding/hex"
	"net/http"
)

const settingsPath = "/api/v1/settings"

// Setting is what holds of a key of the configuration that a node runs by.
type Setting struct {
	Path   string `json:"path"` // services "web": check.interval
	Value  string `json:"value,omitempty"`
	Entry  bool   `json:"entry,omitempty"`  // Path is of an entry of a list
	Secret []byte `json:"secret,omitempty"` // what is not to be shown, sealed with a salt
}

// Settings asks by which configuration the node runs; its secrets are sealed with salt.
func (c *Client) Settings(ctx context.Context, salt []byte) ([]Setting, error) {
	return ask[[]Setting](ctx, c, "settings", settingsPath+"?salt="+hex.EncodeToString(salt))
}

func (s *Server) settings(w http.ResponseWriter, r *http.Request, settings func(salt []byte) []Setting) {
	salt, err := hex.DecodeString(r.URL.Query().Get("salt"))
	if err != nil || len(salt) < 16 {
		http.Error(w, "the salt is to be 16 bytes or more, in hexadecimal", http.StatusBadRequest)
		return
	}
	s.answer(w, http.StatusOK, settings(salt))
}
