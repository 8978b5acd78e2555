package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cli/internal/share"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
)

func operatorCommand() *cli.Command {
	return &cli.Command{Name: "operator", Usage: "seal the cluster, and break-glass recovery", Subcommands: []*cli.Command{
		sealCommand(), unsealCommand(),
		{Name: "keygen", Usage: "make a key to which recovery shares can be encrypted",
			Description: "The private key goes into FILE, mode 0600; the public key, the recipient, is printed. Both have the form of age\n(https://age-encryption.org), whose tools read them. Keep FILE away from the cluster, and a copy of it.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Required: true, Usage: "`FILE` for the private key; it must not exist"},
				&cli.BoolFlag{Name: "x25519", Usage: "X25519 alone, for tools that do not know the post-quantum hybrid"},
			},
			Action: keygen},
		{Name: "recover", Usage: "write recovery shares, each encrypted to a person, one file each (role recover)",
			Description: "With fewer recipients than shares, they get several each, in turn. Files say readably of which cluster and\nshare set they are; a rekey makes them useless, so write new ones after it.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "out", Aliases: []string{"o"}, EnvVars: []string{"SPIKE_PILOT_RECOVERY_DIR"}, Usage: "`DIRECTORY` for the files (default: ~/.spike/recover)"},
				&cli.StringSliceFlag{Name: "recipient", Aliases: []string{"r"}, Usage: "public `KEY` of an operator, age1…; may be repeated"},
				&cli.StringFlag{Name: "recipients-file", Usage: "`FILE` of public keys, one a line"},
				&cli.BoolFlag{Name: "one-holder", Usage: "allow that one recipient, or one passphrase, gets enough shares for the root key"},
				&cli.BoolFlag{Name: "passphrase", Usage: "encrypt to passphrases, one for each share, where there are no keys: asked for, or from --passphrase-file"},
				passphraseFlag("one line for each share"),
				&cli.BoolFlag{Name: "plaintext", Usage: "do not encrypt: SPIKE's form, spike:NUMBER:HEX. Needs the setting 'wire_recovery'"},
			},
			Action: with(recoverShares)},
		{Name: "restore", Usage: "give one recovery share back (role restore); repeat with others until it says restored", ArgsUsage: "[FILE]",
			Description: "FILE is a recovery file, or holds a share in SPIKE's form; without it that is read from standard input. The share\nis decrypted here, checked by the cluster by itself, and collected in memory by the leader.",
			Flags: []cli.Flag{
				&cli.StringSliceFlag{Name: "identity", Aliases: []string{"i"}, Usage: "`FILE` of the private key that the share is encrypted to; may be repeated"},
				passphraseFlag("of a share that is encrypted to one"),
			},
			Action: with(restoreShare)},
	}}
}

func keygen(c *cli.Context) error {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
		return err
	}
	var identity, recipient string
	if c.Bool("x25519") {
		key, err := age.GenerateX25519Identity()
		if err != nil {
			return err
		}
		identity, recipient = key.String(), key.Recipient().String()
	} else {
		key, err := age.GenerateHybridIdentity()
		if err != nil {
			return err
		}
		identity, recipient = key.String(), key.Recipient().String()
	}
	text := fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), recipient, identity)
	if err := writePrivate(c.String("out"), []byte(text)); err != nil {
		return err
	}
	return show(c, map[string]string{"recipient": recipient, "file": c.String("out")}, func(w io.Writer) { fmt.Fprintln(w, recipient) })
}

// writePrivate makes a file that only its owner can read, whole and on disk, or none.
func writePrivate(name string, content []byte) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		os.Remove(name)
	}
	return err
}

func recoverShares(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	recipients, err := namedRecipients(c)
	if err != nil {
		return err
	}
	ways := 0
	for _, chosen := range []bool{len(recipients) > 0, c.Bool("passphrase"), c.Bool("plaintext")} {
		if chosen {
			ways++
		}
	}
	if ways != 1 {
		return usage("say to whom the shares are encrypted: --recipient (see 'spikectl operator keygen') for each of several people, else --passphrase, or --plaintext for shares that anybody can read")
	}
	dir, err := recoveryDir(c)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var files []string
	if c.Bool("plaintext") {
		files, err = recoverPlain(ctx, cl, dir)
	} else {
		files, err = recoverEncrypted(ctx, c, cl, dir, recipients)
	}
	if err != nil {
		return needsRole(err, "recover")
	}
	sort.Strings(files)
	return show(c, map[string][]string{"files": files}, func(w io.Writer) {
		for _, name := range files {
			fmt.Fprintln(w, name)
		}
		if c.Bool("plaintext") {
			fmt.Fprintln(c.App.ErrWriter, "WARNING: these files open the cluster. They are not encrypted: give each to another person, on a medium of its own, and remove them here.")
			return
		}
		fmt.Fprintln(c.App.ErrWriter, "give each file to the person it is for, and let nobody have enough of them that is alone; test them one day: docs/operations.md has the drill")
	})
}

// recoveryDir is where the files go; one that has some is refused.
func recoveryDir(c *cli.Context) (string, error) {
	dir := c.String("out")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".spike", "recover")
	}
	plain, _ := share.Files(dir)
	encrypted, _ := filepath.Glob(filepath.Join(dir, "spike-ha-recovery-*.age"))
	if len(plain)+len(encrypted) > 0 {
		return "", usage("%s holds recovery files already; move them away first", dir)
	}
	return dir, os.MkdirAll(dir, 0o700)
}

func namedRecipients(c *cli.Context) ([]string, error) {
	list := c.StringSlice("recipient")
	if name := c.String("recipients-file"); name != "" {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(raw)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				list = append(list, line)
			}
		}
		if len(list) == 0 {
			return nil, usage("%s names no recipient", name)
		}
	}
	for i, r := range list {
		if _, err := recoveryfile.ParseRecipient(r); err != nil {
			return nil, usage("recipient %d: %v", i+1, err)
		}
	}
	return list, nil
}

func recoverPlain(ctx context.Context, cl *client.Client, dir string) (files []string, err error) {
	var answer share.Export
	if err := cl.Wire(ctx, client.WireRecover, "", struct{}{}, &answer); err != nil {
		return nil, err
	}
	for id, shard := range answer.Shards {
		name, err := share.Write(dir, id, shard, false)
		if err != nil {
			return nil, err
		}
		files = append(files, name)
	}
	return files, nil
}

// recoverEncrypted has the cluster encrypt the shares: none is in the clear on
// its way. To passphrases they are encrypted here, from a key that was made for it.
func recoverEncrypted(ctx context.Context, c *cli.Context, cl *client.Client, dir string, recipients []string) (names []string, err error) {
	request := client.RecoverRequest{Recipients: recipients, OneHolder: c.Bool("one-holder")}
	again := func(f *recoveryfile.File, content []byte) ([]byte, error) { return content, nil }
	if c.Bool("passphrase") {
		key, err := age.GenerateHybridIdentity()
		if err != nil {
			return nil, err
		}
		request = client.RecoverRequest{Recipients: []string{key.Recipient().String()}, OneHolder: true}
		ask := newPassphrases(c)
		shares := map[string]int{} // of each passphrase
		again = func(f *recoveryfile.File, _ []byte) ([]byte, error) {
			passphrase, err := ask.next(fmt.Sprintf("Passphrase for share %d of %d", f.Index, f.Shares), true)
			if err != nil {
				return nil, err
			}
			to, err := recoveryfile.Passphrase(passphrase)
			if err != nil {
				return nil, usage("share %d: %v", f.Index, err)
			}
			if shares[passphrase]++; shares[passphrase] >= f.Threshold && !c.Bool("one-holder") {
				return nil, usage("share %d: one passphrase would open %d of %d shares, and %d are enough for the root key; give each share its own, or allow one holder (--one-holder)",
					f.Index, shares[passphrase], f.Shares, f.Threshold)
			}
			secret, err := f.Open(key)
			if err != nil {
				return nil, err
			}
			defer clear(secret)
			return recoveryfile.Write(f.Header, secret, to)
		}
	}
	files, err := cl.Recover(ctx, request)
	if err != nil {
		return nil, err
	}
	contents := make([][]byte, len(files))
	for i, f := range files { // all of them, before the first is written
		file, err := recoveryfile.Parse([]byte(f.Content))
		if err != nil {
			return nil, fmt.Errorf("the cluster's answer: %w", err)
		}
		if contents[i], err = again(file, []byte(f.Content)); err != nil {
			return nil, err
		}
		names = append(names, filepath.Join(dir, file.Name()))
	}
	for i, name := range names {
		if err := writePrivate(name, contents[i]); err != nil {
			for _, written := range names[:i] { // all of them, or none
				os.Remove(written)
			}
			return nil, err
		}
	}
	return names, nil
}

func restoreShare(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	request, err := readShare(c, c.Args().First())
	if err != nil {
		return err
	}
	defer clear(request.Share)
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.Restore(ctx, request)
	if err != nil {
		return needsRole(refusedShare(err), "restore")
	}
	return show(c, answer, func(io.Writer) {
		if answer.Restored {
			fmt.Fprintln(c.App.ErrWriter, "restored: the cluster is unsealing and refills its Keepers")
			return
		}
		given := slices.Collect(func(yield func(string) bool) {
			for _, n := range answer.Given {
				if !yield(fmt.Sprint(n)) {
					return
				}
			}
		})
		fmt.Fprintf(c.App.ErrWriter, "%s collected (%s), %d to go\n", count(answer.Collected, "share"), strings.Join(given, ", "), answer.Remaining)
	})
}

// readShare reads a recovery file, or a share in SPIKE's form, from the file of that name, or from standard input.
// What is wrong with it is said of the file by name: people have several.
func readShare(c *cli.Context, name string) (r client.RestoreRequest, err error) {
	defer func() {
		if err != nil && name != "" && name != "-" && !errors.As(err, new(*fs.PathError)) {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	source := c.App.Reader
	if name != "" && name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return r, err
		}
		defer file.Close()
		source = file
	}
	in := bufio.NewReader(source)
	if start, _ := in.Peek(6); string(start) == "spike:" { // one line: somebody may type it
		line, err := in.ReadString('\n')
		if err != nil && err != io.EOF {
			return r, err
		}
		plain, err := share.Parse(line)
		return client.RestoreRequest{Index: plain.ID, Share: plain.Shard[:]}, err
	}
	raw, err := io.ReadAll(io.LimitReader(in, recoveryfile.MaxSize+1))
	if err != nil {
		return r, err
	}
	file, err := recoveryfile.Parse(raw)
	if err != nil {
		if _, plain := share.Parse(string(raw)); plain != nil {
			return r, fmt.Errorf("%w, nor a share in SPIKE's form", err)
		}
		return r, err
	}
	identities, err := identitiesFor(c, file)
	if err != nil {
		return r, err
	}
	r = client.RestoreRequest{Index: file.Index, Cluster: file.Cluster.ID[:], Set: file.Set[:]}
	r.Share, err = file.Open(identities...)
	if errors.Is(err, recoveryfile.ErrIdentity) {
		err = fmt.Errorf("%w; it is for %s", err, file.For)
	}
	return r, err
}

func identitiesFor(c *cli.Context, file *recoveryfile.File) (list []age.Identity, err error) {
	if file.ForPassphrase() {
		passphrase, err := newPassphrases(c).next(fmt.Sprintf("Passphrase of share %d of %d", file.Index, file.Shares), false)
		if err != nil {
			return nil, err
		}
		identity, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, usage("a passphrase is needed")
		}
		return []age.Identity{identity}, nil
	}
	names := c.StringSlice("identity")
	if len(names) == 0 {
		return nil, usage("the share is encrypted to %s: give the private key with --identity", file.For)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		identities, err := age.ParseIdentities(bytes.NewReader(raw))
		clear(raw)
		if err != nil { // which may quote the file
			return nil, usage("%s holds no private key of age", name)
		}
		list = append(list, identities...)
	}
	return list, nil
}

// shareReasons are the words with which a peer says why it refused a share.
var shareReasons = map[string]string{
	"share_wrong":         "this is not the share of that number: it was mistyped, or belongs to another key",
	"share_given_already": "the share of that number was given already; give another one",
	"share_index_unknown": "the cluster has no share of that number",
	"not_sealed":          "the cluster is not sealed; there is nothing to restore",
}

// refusedShare says in words why a share was refused. None of the reasons
// spoils what was collected before.
func refusedShare(err error) error {
	var e *secret.Error
	if !errors.As(err, &e) || e.Code != secret.CodeInvalid {
		return err
	}
	message, ok := shareReasons[e.Reason]
	if !ok {
		message = e.Message
	}
	if e.Reason != "not_sealed" && e.Reason != "operator_sealed" { // there none was collected
		message += "; shares given before still count"
	}
	return &secret.Error{Code: e.Code, Message: message, Reason: e.Reason, Cause: err}
}
