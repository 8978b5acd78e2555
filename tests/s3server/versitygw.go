//go:build !minio

package s3server

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const module, program = "s3", "versitygw"

func (s *Server) command(path, dir, cert, key string) (*exec.Cmd, error) {
	cmd := exec.Command(path, "--port", s.Address, "--cert", cert, "--key", key, "--quiet", "--iam-dir", filepath.Join(dir, "iam"),
		"posix", "--versioning-dir", filepath.Join(dir, "versions"), s.Data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.Access, "ROOT_SECRET_ACCESS_KEY="+s.Secret)
	return cmd, nil
}

// User makes a user, who may do nothing until a policy says so, and returns the server as that user.
func (s *Server) User(t testing.TB, name string) *Server {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	user := s.As(t, name, "secret-of-"+name)
	cmd := exec.Command(path, "admin", "--endpoint-url", "https://"+s.Address, "--allow-insecure", "create-user",
		"--access", user.Access, "--secret", user.Secret, "--role", "user")
	cmd.Env = append(os.Environ(), "ADMIN_ACCESS_KEY_ID="+s.Access, "ADMIN_SECRET_ACCESS_KEY="+s.Secret)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("a user: %v\n%s", err, out)
	}
	return user
}
