package cli

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

// The framing of SPIKE's cipher streams, which files have too.
const (
	cipherVersion  = 1
	streamVersion  = 2 // the first byte of what --stream gives
	cipherNonce    = 12
	maxCipherInput = 65536
)

func cipherCommand() *cli.Command {
	file := &cli.StringFlag{Name: "file", Usage: "read `FILE` instead of standard input"}
	out := &cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write `FILE` (mode 0600) instead of standard output"}
	stream := &cli.BoolFlag{Name: "stream", Usage: "any length, piece by piece: bytes in, bytes out"}
	return &cli.Command{Name: "cipher", Usage: "encrypt and decrypt without storing", Subcommands: []*cli.Command{
		{Name: "encrypt", Usage: "encrypt under the cluster's cipher key: up to 64 KiB, or any length with --stream", Flags: []cli.Flag{file, out, stream}, Action: eitherCipher(encrypt, (*client.Client).EncryptStream)},
		{Name: "decrypt", Usage: "decrypt what encrypt gave", Flags: []cli.Flag{file, out, stream}, Action: eitherCipher(decrypt, (*client.Client).DecryptStream)},
	}}
}

func encrypt(c *cli.Context, dial dialer) error {
	plain, err := cipherInput(c, maxCipherInput)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var answer struct {
		Nonce      []byte `json:"nonce"`
		Ciphertext []byte `json:"ciphertext"`
	}
	if err := cl.Wire(ctx, client.WireEncrypt, "", map[string][]byte{"plaintext": plain}, &answer); err != nil {
		return err
	}
	framed := append(append([]byte{cipherVersion}, answer.Nonce...), answer.Ciphertext...)
	if c.String("format") != "table" {
		return show(c, map[string]any{"version": cipherVersion, "nonce": answer.Nonce, "ciphertext": answer.Ciphertext}, nil)
	}
	if c.IsSet("out") {
		return cipherOutput(c, framed)
	}
	fmt.Fprintln(c.App.Writer, base64.StdEncoding.EncodeToString(framed))
	return nil
}

func decrypt(c *cli.Context, dial dialer) error {
	input, err := cipherInput(c, 2*maxCipherInput) // in base64, with what encryption adds
	if err != nil {
		return err
	}
	framed := input
	if decoded, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(input))); err == nil {
		framed = decoded
	}
	if len(framed) > 0 && framed[0] == streamVersion {
		return usage("the input is a stream: add --stream")
	}
	if len(framed) < 1+cipherNonce || framed[0] != cipherVersion {
		return usage("the input is not what 'spikectl cipher encrypt' gives")
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var answer struct {
		Plaintext []byte `json:"plaintext"`
	}
	if err := cl.Wire(ctx, client.WireDecrypt, "", map[string]any{"version": cipherVersion, "nonce": framed[1 : 1+cipherNonce], "ciphertext": framed[1+cipherNonce:]}, &answer); err != nil {
		return err
	}
	if c.String("format") != "table" {
		return show(c, map[string]any{"plaintext": answer.Plaintext}, nil)
	}
	return cipherOutput(c, answer.Plaintext)
}

func cipherInput(c *cli.Context, limit int64) ([]byte, error) {
	if err := arguments(c, 0, 0); err != nil {
		return nil, err
	}
	if c.IsSet("out") && c.String("format") != "table" {
		return nil, usage("--out writes the bytes alone: leave --format (SPIKE_FORMAT) away")
	}
	in := c.App.Reader
	if c.IsSet("file") {
		file, err := os.Open(c.String("file"))
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = usage("the input is larger than what is encrypted in one piece, 64 KiB: add --stream")
	}
	return b, err
}

func cipherOutput(c *cli.Context, b []byte) error {
	if c.IsSet("out") {
		file, err := os.OpenFile(c.String("out"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err == nil && info.Mode().IsRegular() {
			err = file.Chmod(0o600) // it may have been there, open to others
		}
		if err == nil {
			_, err = file.Write(b)
		}
		return errors.Join(err, file.Close())
	}
	_, err := c.App.Writer.Write(b)
	return err
}
