// Package setup writes a first configuration: for this host, of what its kernel says
// of it, and of a configuration of keepalived, as far as that can be said in ours.
//
// It guesses, and says what it guessed and by what. It changes nothing; whether the
// result is right is for config to say, whose shape it writes. It is called by
// cmd/halfproxy alone.
package setup
