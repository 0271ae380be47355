package admin_test

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/admin"
)

// They have names of files in them, and digests of secrets.
func TestSettingsAreServedOnTheSocketAlone(t *testing.T) {
	cfg := config(t)
	settings := func(salt []byte) []admin.Setting {
		return []admin.Setting{{Path: "node.name", Value: "lb1"}, {Path: "cluster.key_file", Value: "cluster.key", Secret: salt}}
	}
	cfg.Settings = settings
	n := start(t, cfg)
	salt := []byte("sixteen bytes or")
	if got, err := admin.NewClient(cfg.Socket).Settings(t.Context(), salt); err != nil || !reflect.DeepEqual(got, settings(salt)) {
		t.Errorf("got %v, %v, want %v", got, err, settings(salt))
	}
	if _, err := admin.NewClient(cfg.Socket).Settings(t.Context(), salt[:4]); err == nil || !strings.Contains(err.Error(), "16 bytes or more") {
		t.Errorf("a short salt: got %v, want it refused", err)
	}
	if resp, _ := ask(t, http.DefaultClient, "GET", n.url+"/api/v1/settings?salt=00112233445566778899aabbccddeeff"); resp.StatusCode != 404 {
		t.Errorf("TCP: got %d, want 404", resp.StatusCode)
	}
}
