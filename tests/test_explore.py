"What the explorer writes to be copied, done as a user would do it"
import shlex
import subprocess

def test_the_command_of_a_row_draws_its_faces(cemiface, tmp_path):
    from cemiface.all import FaceSet, as_faces, load_generator, to_uint8, toy_people
    from cemiface.explore import RowSettings, row_command
    pipe = load_generator('toy')
    people, settings = toy_people('test', 2, size=pipe.size), RowSettings(1, .8, 'sphere', 2, 1.5, 7)
    *inquiry, command = row_command(pipe, people, settings, n=3).splitlines()
    subprocess.run(['sh', '-c', '\n'.join(inquiry)], cwd=tmp_path, check=True)
    r = cemiface(*shlex.split(command)[1:])
    assert r.code==0, r.err
    expected = pipe(as_faces(people)[1:], **settings.arguments(3)).images
    assert (FaceSet.from_folder(tmp_path/'row', pipe.size).images==to_uint8(expected).numpy()).all()
