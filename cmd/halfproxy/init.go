package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/setup"
)

func initCommand() *cobra.Command {
	var path, iface, keepalived string
	var options setup.Options
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a first configuration for this host",
		Long: `Write a first configuration for this host.

Interface, addresses and router are guessed by the default route; each guess is
marked in the file, and said. A file that is there already stays. What is written
passes ` + "`halfproxy check`" + `.

--from-keepalived makes services of the virtual servers of a configuration of
keepalived that forward by DR or TUN, and says of every directive that it left out
or changed; docs/migration.md tells the rest of the way.`,
		Example: "  halfproxy init\n  halfproxy init --config - --interface eth1 --asn 64512 --router-asn 64496\n  halfproxy init --from-keepalived /etc/keepalived/keepalived.conf",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var notes []string
			if keepalived != "" {
				text, err := os.ReadFile(keepalived)
				if err != nil {
					return err
				}
				converted, err := setup.FromKeepalived(keepalived, string(text))
				if err != nil {
					return err
				}
				options.Services, notes = converted.Services, converted.Notes
			}
			host, err := setup.Look(iface)
			if err != nil {
				return err
			}
			options.Name, _ = os.Hostname() // a comment, which may do without
			text, guesses := setup.File(host, options)
			if _, err := config.Parse(cmp.Or(keepalived, path), []byte(text)); err != nil {
				return fmt.Errorf("nothing is written, as the result would not be taken; lines are those of the result:\n%w\n\n%s", err, text)
			}
			if path == "-" {
				fmt.Fprint(cmd.OutOrStdout(), text)
			} else if err := writeNew(path, text); err != nil {
				return err
			}
			said := cmd.ErrOrStderr() // beside a file on standard output
			for _, n := range notes {
				fmt.Fprintln(said, n)
			}
			for _, g := range guesses {
				fmt.Fprintf(said, "guessed: %s\n", g)
			}
			if path != "-" {
				fmt.Fprintf(said, "%s is written. Go on with: its placeholders and services, halfproxy check, halfproxy doctor\n", path)
			}
			return nil
		},
	}
	configFlag(cmd, &path, defaultConfig)
	cmd.Flags().Lookup("config").Usage = "write to this `FILE`; - is standard output"
	cmd.Flags().StringVar(&iface, "interface", "", "`NAME` of the NIC that carries VIP traffic (default: that of the default route)")
	cmd.Flags().Uint32Var(&options.ASN, "asn", 0, "this node's AS `NUMBER`")
	cmd.Flags().Uint32Var(&options.RouterASN, "router-asn", 0, "the router's AS `NUMBER`")
	cmd.Flags().StringVar(&keepalived, "from-keepalived", "", "make services of the virtual servers in this `FILE`")
	filesOf(cmd, "from-keepalived", "conf")
	return cmd
}

// writeNew writes a file that is not there yet. It has no secret in it, and names files
// that have.
func writeNew(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already and stays: name another file with --config, or - to read what would be written", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
