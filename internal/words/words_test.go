package words

import "testing"

func TestNearestFindsWhatWasMeant(t *testing.T) {
	known := []string{"status", "trace", "drain", "weight", "asn"}
	for _, tt := range []struct{ word, want string }{
		{"statsu", "status"},
		{"STATUS", "status"},
		{"weigth", "weight"},
		{"dran", "drain"},
		{"train", "drain"},
		{"asm", "asn"},
		{"as", "asn"},
		{"a", ""},
		{"", ""},
		{"quorum", ""},
		{"st", ""},
	} {
		if got, found := Nearest(tt.word, known); got != tt.want || found != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.word, got, found, tt.want)
		}
	}
	if got, found := Nearest("status", nil); found {
		t.Errorf("of no words: got %q, want none", got)
	}
}

func TestOrListsWordsAsASentenceDoes(t *testing.T) {
	for want, words := range map[string][]string{"a": {"a"}, "a or b": {"a", "b"}, "a, b or c": {"a", "b", "c"}} {
		if got := Or(words); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
